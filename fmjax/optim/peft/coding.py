"""Coding frozen weights in four or eight bits: `peft.coding`."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.coded_weights import (
    BLOCK,
    INT8,
    NF4,
    NF4_LEVELS,
    OUTER_BLOCK,
    Coded,
    dynamic_levels,
)
from fmjax.optim.axes import Names
from fmjax.optim.peft.added import Weight, chosen

# The matrices of blocks.
PATHS = ("**/*attention/*", "**/mlp/**")
# Small, and experts are chosen by them.
_WHOLE = ("router", "shared_gate")


@dataclasses.dataclass(frozen=True)
class Part:
    """An array of a coded weight.

    Attributes:
      shape: of the array.
      names: logical names of its axes.
      dtype: its name.
    """

    shape: tuple[int, ...]
    names: Names
    dtype: str


class Coding(Protocol):
    """Protocol of `peft.coding`.

    Attributes:
      paths: patterns of the weights.
      suffix: of the names of coded weights.
    """

    paths: tuple[str, ...]
    suffix: ClassVar[str]
    gin_name: ClassVar[str]

    def parts(self, weight: Weight) -> dict[str, Part]:
        """The arrays of a coded weight, by name.

        Raises:
          UserError: it cannot be coded.
        """

    def encode(self, weight: Float[Array, "..."], inputs: int) -> dict[str, Array]:
        """The arrays of one weight, of which the first axes are inputs."""


@configurable("int8")
@dataclasses.dataclass(frozen=True)
class Int8:
    """Eight bits: each output's weights divided by their largest magnitude / 127.

    Attributes:
      paths: patterns of the weights, which match matrices alone; routers stay whole.
    """

    paths: tuple[str, ...] = PATHS

    suffix: ClassVar[str] = INT8

    def __post_init__(self):
        """Raises UserError without patterns."""
        require(self, "paths", len(self.paths) > 0, "one pattern or more")

    def parts(self, weight: Weight) -> dict[str, Part]:
        """Codes like the weight, and a scale for each output."""
        stacked, stack_names = weight.stacked
        outputs, names = weight.side(1)
        scale = Part((*stacked, *outputs), (*stack_names, *names), "float32")
        return {"codes": Part(weight.shape, weight.names, "int8"), "scale": scale}

    def encode(self, weight: Float[Array, "..."], inputs: int) -> dict[str, Array]:
        """The codes, rounded to the nearest; see `Coding`."""
        weight = weight.astype(jnp.float32)
        scale = jnp.abs(weight).max(tuple(range(inputs))) / 127
        divisor = jnp.where(scale > 0, scale, 1)
        return {"codes": jnp.round(weight / divisor).astype(jnp.int8), "scale": scale}


@configurable("nf4")
@dataclasses.dataclass(frozen=True)
class NormalFloat4:
    """NormalFloat4 (QLoRA, Dettmers et al. 2023): the codes of bitsandbytes.

    64 inputs of an output share their largest magnitude.

    Attributes:
      paths: patterns of the weights, which match matrices alone; routers stay whole.
      double: whether the largest magnitudes are kept in eight bits as well, 4.13 bits a
        weight in place of 4.5.
    """

    paths: tuple[str, ...] = PATHS
    double: bool = True

    suffix: ClassVar[str] = NF4

    def __post_init__(self):
        """Raises UserError without patterns."""
        require(self, "paths", len(self.paths) > 0, "one pattern or more")

    def parts(self, weight: Weight) -> dict[str, Part]:
        """Codes and largest magnitudes, see `decode_nf4`."""
        stacked, stack_names = weight.stacked
        (inputs, in_names), (outputs, out_names) = weight.side(0), weight.side(1)
        size = math.prod(inputs)
        if size % BLOCK:
            raise UserError(
                f"nf4.paths: {weight.path!r} has {size} inputs; expected a multiple of "
                f"{BLOCK}, or patterns that do not match it."
            )
        lead, names = (*stacked, *outputs), (*stack_names, *out_names)
        blocks = size // BLOCK
        found = {
            "codes": Part(
                (*lead, blocks, BLOCK // 2), (*names, in_names[0], None), "uint8"
            )
        }
        if not self.double:
            largest = Part((*lead, blocks), (*names, in_names[0]), "float32")
            return found | {"largest": largest}
        outer = -(-math.prod(outputs) * blocks // OUTER_BLOCK)
        return found | {
            "largest": Part((*lead, blocks), (*names, in_names[0]), "uint8"),
            "outer": Part((*stacked, outer), (*stack_names, None), "float32"),
            "mean": Part(stacked, stack_names, "float32"),
        }

    def encode(self, weight: Float[Array, "..."], inputs: int) -> dict[str, Array]:
        """The codes, rounded to the nearest level; see `Coding`."""
        outputs = weight.shape[inputs:]
        rows = weight.astype(jnp.float32).reshape(-1, *outputs)
        blocks = jnp.moveaxis(rows, 0, -1).reshape(*outputs, -1, BLOCK)
        largest = jnp.abs(blocks).max(-1)
        divisor = jnp.where(largest > 0, largest, 1)
        codes = _nearest(blocks / divisor[..., None], np.array(NF4_LEVELS))
        pairs = codes.reshape(*codes.shape[:-1], -1, 2)
        found = {"codes": pairs[..., 0] << 4 | pairs[..., 1]}
        if not self.double:
            return found | {"largest": largest}
        mean = largest.mean()
        flat = (largest - mean).reshape(-1)
        padded = jnp.pad(flat, (0, -flat.size % OUTER_BLOCK)).reshape(-1, OUTER_BLOCK)
        outer = jnp.abs(padded).max(-1)
        scaled = padded / jnp.where(outer > 0, outer, 1)[:, None]
        coded = _nearest(scaled, dynamic_levels()).reshape(-1)[: flat.size]
        return found | {
            "largest": coded.reshape(largest.shape),
            "outer": outer,
            "mean": mean,
        }


def coded_weights(
    coding: Coding, weights: Sequence[Weight], frozen: Mapping[str, Any]
) -> dict[str, Weight]:
    """The frozen weights that a coding is for, by path.

    Args:
      coding: of which kind.
      weights: the matrices of the model.
      frozen: by path; others are not coded.
    """
    binding = f"{coding.gin_name}.paths"
    able = [w for w in weights if w.path.rpartition("/")[2] not in _WHOLE]
    matched = chosen(coding.paths, binding, able)
    return {weight.path: weight for weight in matched if weight.path in frozen}


def encode(coding: Coding, weight: Weight, values: Array) -> dict[str, Array]:
    """The arrays of a coded weight or stack of weights, by name."""
    run = over_stack(weight, lambda one: coding.encode(one, len(weight.side(0)[0])))
    return run(values)


def decode(coding: Coding, weight: Weight, codes: Mapping[str, Array]) -> Array:
    """The weight or stack of weights of codes, float32."""
    (inputs, _), (outputs, _) = weight.side(0), weight.side(1)

    def one(codes):
        coded = Coded(codes, (*inputs, *outputs), len(inputs), coding.suffix)
        return coded.decode(jnp.float32)

    return over_stack(weight, one)(dict(codes))


def over_stack(weight: Weight, function: Callable) -> Callable:
    """A function of one weight, for all layers and experts one after the other."""
    for _ in range(weight.batch):
        function = _mapped(function)
    return function


def _mapped(function: Callable) -> Callable:
    return lambda values: jax.lax.map(function, values)


def _nearest(values: Array, levels: np.ndarray) -> Array:
    """The index of the nearest of levels in order, uint8."""
    between = (levels[:-1].astype(np.float64) + levels[1:]) / 2
    # Compared with all, as a search would look levels up one at a time on TPUs.
    between = jnp.asarray(between, jnp.float32)
    return jnp.searchsorted(between, values, method="compare_all").astype(jnp.uint8)
