"""Weights kept in four or eight bits, which a layer decodes where it multiplies.

A coded weight `query` is an entry beside where the weight would be in the parameters of
its module, such as `query_nf4`. `fmjax.optim.peft.coding` makes them; they are frozen.
Their products have a backward pass of their own, which decodes again: nothing of the
size of a weight is kept for it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from fmjax.sharding.platform import platform

# Suffixes of the names of coded weights.
NF4 = "_nf4"
INT8 = "_int8"
# NF4: inputs that share a largest magnitude, and how many of those share another.
BLOCK, OUTER_BLOCK = 64, 256
# NormalFloat4 (Dettmers et al. 2023, appendix E).
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

Codes = Mapping[str, Array]


def dynamic_levels() -> Float[np.ndarray, "256"]:
    """The values of signed dynamic quantization (Dettmers et al. 2021, section 2.1).

    Seven decades from 1e-6 to 1, decade i of which has 2^i linear steps of each sign;
    and 0 and 1.
    """
    found = [0.0, 1.0]
    for decade in range(7):
        middles = np.float32(10.0 ** (decade - 6)) * _middles(2**decade)
        found += [*middles, *-middles]
    return np.sort(np.array(found, np.float32))


def _middles(steps: int) -> Float[np.ndarray, " steps"]:
    """The middles of equal steps from 0.1 to 1, float32, rounded as in bitsandbytes.

    torch counts from the nearer end, and rounds a product and sum once.
    """
    step = np.float64(np.float32(0.9 / steps))
    at = np.arange(steps + 1)
    up, down = np.float32(0.1) + step * at, 1 - step * (steps - at)
    edges = np.where(at < (steps + 1) // 2, up, down).astype(np.float32)
    return (edges[:-1] + edges[1:]) / np.float32(2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coded:
    """A coded weight, to be decoded.

    Attributes:
      codes: arrays of its entry in the parameters.
      shape: of the weight.
      inputs: how many of its axes are inputs.
      kind: `NF4` or `INT8`.
    """

    codes: Codes
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    inputs: int = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})

    def decode(self, dtype: Any) -> Array:
        """The weight in this dtype."""
        decode = decode_nf4 if self.kind == NF4 else decode_int8
        return decode(self.codes, self.shape, self.inputs, dtype)

    def astype(self, dtype: Any) -> Array:
        """As `decode`; an array has this method too."""
        return self.decode(dtype)


def weight(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: tuple[int, ...],
    inputs: int = 1,
) -> Array | Coded:
    """A module's weight: a parameter, or coded where the parameters have codes of it.

    Args:
      module: the one that has the weight.
      name: of the weight.
      init: its initializer.
      shape: of the weight.
      inputs: how many of its axes are inputs.
    """
    for kind in (NF4, INT8):
        codes = module.get_variable("params", name + kind)
        if codes is not None:
            return Coded(codes, tuple(shape), inputs, kind)
    return module.param(name, init, shape)


def parameter_count(params: Mapping[str, Any]) -> int:
    """How many parameters a nested dict has; a coded weight counts as a whole one."""
    count = 0
    for name, value in params.items():
        if not isinstance(value, Mapping):
            count += value.size
        elif name.endswith((NF4, INT8)):
            count += value["codes"].size * (2 if name.endswith(NF4) else 1)
        else:
            count += parameter_count(value)
    return count


def coded_product(
    multiply: Callable[[Array, Array], Array], x: Array, coded: Coded
) -> Array:
    """multiply(x, weight), without a gradient of the weight.

    Args:
      multiply: linear in both arguments; the weight has the dtype of x.
      x: inputs.
      coded: the weight.
    """

    @jax.custom_vjp
    def run(x, codes):
        return forward(x, codes)[0]

    def decoded(codes):
        return dataclasses.replace(coded, codes=codes).decode(x.dtype)

    def forward(x, codes):
        return multiply(x, decoded(codes)), codes

    def backward(codes, gradient):
        # Else XLA would keep what the forward pass has decoded.
        codes, gradient = jax.lax.optimization_barrier((codes, gradient))
        # A linear function has the same gradient everywhere.
        zeros = jnp.zeros(x.shape, x.dtype)
        _, pull = jax.vjp(lambda x: multiply(x, decoded(codes)), zeros)
        nothing = jax.tree.map(_no_gradient, codes)
        return *pull(gradient), nothing

    run.defvjp(forward, backward)
    return run(x, coded.codes)


def decode_nf4(codes: Codes, shape: tuple[int, ...], inputs: int, dtype: Any) -> Array:
    """A weight from its codes.

    Args:
      codes: "codes", two in a byte, the first in its high half: uint8 [*outputs, N, 32]
        for N = inputs / 64 blocks; "largest", the largest magnitude of each block:
        float32 [*outputs, N], or with "outer" and "mean" codes of dynamic quantization,
        uint8. "outer", float32 [⌈outputs · N / 256⌉], has the largest magnitude of 256
        of them in a row, after "mean" [] was subtracted.
      shape: of the weight, inputs first.
      inputs: how many axes are inputs.
      dtype: of the result.
    """
    packed = codes["codes"]
    halves = jnp.stack([packed >> 4, packed & 15], axis=-1)
    values = _nf4_values(halves).reshape(*packed.shape[:-1], -1)
    values = values * _largest(codes)[..., None]
    outputs = shape[inputs:]
    rows = values.reshape(*outputs, math.prod(shape[:inputs])).astype(dtype)
    return jnp.moveaxis(rows, -1, 0).reshape(shape)


def decode_int8(codes: Codes, shape: tuple[int, ...], inputs: int, dtype: Any) -> Array:
    """A weight from "codes", int8 [*shape], and "scale", float32 [*outputs]."""
    del shape, inputs
    return (codes["codes"].astype(jnp.float32) * codes["scale"]).astype(dtype)


def _largest(codes: Codes) -> Float[Array, "..."]:
    if "outer" not in codes:
        return codes["largest"]
    values = jnp.asarray(dynamic_levels())[codes["largest"].astype(jnp.int32)]
    outer = jnp.repeat(codes["outer"], OUTER_BLOCK)[: values.size]
    return values * outer.reshape(values.shape) + codes["mean"]


def _nf4_values(codes: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """The levels of codes below 16, by a tree of selections but on CPUs.

    TPUs look values up one at a time; four selections of vectors take their place. On
    CPUs XLA would keep 16 arrays of the size of a weight for these, one of each level.
    """
    if platform() == "cpu":
        return jnp.asarray(NF4_LEVELS, jnp.float32)[codes.astype(jnp.int32)]
    values = [jnp.float32(level) for level in NF4_LEVELS]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        pairs = zip(values[::2], values[1::2])
        values = [jnp.where(odd, high, low) for low, high in pairs]
    return values[0]


def _no_gradient(leaf: Array) -> Array:
    """The cotangent of an array that has none."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
