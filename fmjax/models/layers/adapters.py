"""Adapters of weights, applied where a weight multiplies its inputs.

An adapter of a weight `query` is an entry beside it in the parameters of the same
module, such as `query_lora`. `fmjax.optim.peft` makes them; a layer reads those that
are there. So models need no fields for them, and a stack scans, shards and saves them
as its other parameters.
"""

import contextlib
import contextvars
import zlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from fmjax.models.layers.coded_weights import Coded, coded_product
from fmjax.models.layers.dropout import Keys, dropout, fold_keys

# Suffixes of the names of adapters.
LORA = "_lora"
IA3 = "_ia3"

Adapter = Mapping[str, Array]

_read: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar(
    "read adapters", default=None
)


@contextlib.contextmanager
def read_adapters() -> Iterator[set[str]]:
    """Context manager: the paths of the adapters that are read by calls inside it."""
    paths: set[str] = set()
    token = _read.set(paths)
    try:
        yield paths
    finally:
        _read.reset(token)


def adapter_of(module: nn.Module, name: str) -> Adapter | None:
    """The arrays of a module's adapter with this name; None if it has none."""
    found = module.get_variable("params", name)
    if found is not None and (paths := _read.get()) is not None:
        paths.add("/".join([*module.path, name]))
    return found


def linear(
    module: nn.Module,
    name: str,
    kernel: Float[Array, "..."] | Coded,
    x: Float[Array, "..."],
    multiply: Callable[[Array, Array, Array | None], Array],
    offset: Float[Array, "..."] | None = None,
    keys: Keys = None,
    factor: float = 1.0,
) -> Float[Array, "..."]:
    """A product with a weight W and its adapters.

    With LoRA (Hu et al. 2021) it is x W + b + s x A B. With DoRA (Liu et al. 2024) x W
    + s x A B is multiplied, for each output, by m / |W + s A B|, where the norm over
    the inputs has no gradient. IA3 (Liu et al. 2022) multiplies the inputs, or the
    outputs with b.

    Args:
      module: the one that has the weight.
      name: of the weight.
      kernel: W, as it is stored.
      x: the inputs.
      multiply: (x, W, b) → x W + b, where W has the dtype of x and was multiplied by
        the factor; b may be None.
      offset: b; None for none.
      keys: one key per example, for dropout of the inputs of A; None for no dropout.
      factor: that W is multiplied by.
    """
    lora, ia3 = adapter_of(module, name + LORA), adapter_of(module, name + IA3)
    if ia3 is not None and "in" in ia3:
        x = x * ia3["in"].astype(x.dtype)

    def scaled(weights: Array) -> Array:
        return (weights if factor == 1.0 else factor * weights).astype(x.dtype)

    def product(offset: Array | None) -> Array:
        if not isinstance(kernel, Coded):
            return multiply(x, scaled(kernel), offset)
        y = coded_product(lambda x, w: multiply(x, scaled(w), None), x, kernel)
        # Its own backward pass hides the product's name from remat policies.
        y = checkpoint_name(y, "weights")
        return y if offset is None else y + offset

    if lora is None:
        y = product(offset)
    else:
        read = x
        if "dropout" in lora:
            salt = zlib.crc32(name.encode()) >> 1
            read = dropout(x, lora["dropout"], fold_keys(keys, salt))
        a, b = lora["a"].astype(x.dtype), lora["b"].astype(x.dtype)
        inner = jnp.tensordot(read, a, a.ndim - 1)
        scale = (factor * lora["scale"]).astype(x.dtype)
        y = product(None)
        y = y + (scale * jnp.tensordot(inner, b, 1)).astype(y.dtype)
        if "magnitude" in lora:
            whole = as_multiplied(kernel, x.dtype)
            y = y * direction_factor(whole, lora).astype(y.dtype)
        y = y if offset is None else y + offset
    if ia3 is not None and "out" in ia3:
        y = y * ia3["out"].astype(y.dtype)
    return y


def as_multiplied(kernel: Array | Coded, dtype: jnp.dtype) -> Array:
    """A weight in the dtype of its products, or in its own if that is wider."""
    if isinstance(kernel, Coded):
        return kernel.decode(dtype)
    return kernel.astype(jnp.promote_types(kernel.dtype, dtype))


def lookup(
    module: nn.Module, name: str, ids: Int[Array, "B T"], y: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """The rows of a table and its adapter, y + s A[ids] B.

    Args:
      module: the one that has the table.
      name: of the table.
      ids: which rows.
      y: those rows of the table.
    """
    lora = adapter_of(module, name + LORA)
    if lora is None:
        return y
    rows = jnp.take(lora["a"].astype(y.dtype), ids, axis=0)
    return y + lora["scale"].astype(y.dtype) * (rows @ lora["b"].astype(y.dtype))


def merged(kernel: Array, lora: Adapter) -> Array:
    """The weight W + s A B, or DoRA's, in float32; axes before A's are batch axes.

    A weight of L layers or E experts has an A for each; those axes come first.
    """
    kernel = kernel.astype(jnp.float32)
    batch = lora["scale"].ndim
    if batch:
        return jax.vmap(merged)(kernel, lora)
    extra = lora["a"].ndim + lora["b"].ndim - 2 - kernel.ndim
    if extra:
        raise ValueError(f"an adapter of {extra} more axes than its weight")
    delta = lora["scale"] * jnp.tensordot(lora["a"], lora["b"], 1)
    whole = kernel + delta.astype(jnp.float32)
    if "magnitude" in lora:
        whole = whole * direction_factor(kernel, lora)
    return whole


def direction_factor(kernel: Array, lora: Adapter) -> Float[Array, "..."]:
    """DoRA's m / |W + s A B| for each output; the norm has no gradient.

    |w + u|² = |w|² + 2 w·u + |u|² is computed from products of W and A, without a
    matrix of the size of W.
    """
    norm = jax.lax.stop_gradient(adapted_norm(kernel, lora))
    # Outputs that are padding of a vocabulary have none.
    return lora["magnitude"] / jnp.where(norm == 0, 1, norm)


def adapted_norm(kernel: Array, lora: Adapter) -> Float[Array, "..."]:
    """|W + s A B| over the inputs, for each output, float32.

    Products with W read it in its own dtype, with A rounded to it, and add up in
    float32: casting W first would copy it.
    """
    a, f32 = lora["a"].astype(kernel.dtype), jnp.float32
    b = lora["scale"] * lora["b"].astype(f32)
    inputs = tuple(range(a.ndim - 1))
    over = (inputs, inputs)
    squares = jnp.square(kernel.astype(f32)).sum(inputs)
    cross = jnp.tensordot(a, kernel, over, preferred_element_type=f32)
    inner = jnp.tensordot(a, a, over, preferred_element_type=f32)
    own = (jnp.tensordot(inner, b, 1) * b).sum(0)
    return jnp.sqrt(squares + 2 * (cross * b).sum(0) + own)
