"""Projections to and from attention heads."""

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels.splash_blocks import reads_positions_last
from fmjax.models.layers.quantized import Quantized, product
from fmjax.sharding.platform import platform


def to_heads(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "D H K"],
    offset: Float[Array, "H K"] | None,
    quantized: Quantized | None = None,
) -> Float[Array, "B T H K"]:
    """Product with a kernel of heads, plus an offset, in the dtype of x.

    On TPUs it is computed, and kept for the backward pass, in the order in which splash
    attention reads it: heads first, and narrow heads with positions last, as the memory
    of TPUs is padded to 128 along the last axis. Of a product with all heads in one
    axis the compiler makes a copy.
    """
    if platform() == "tpu" and quantized is None:
        narrow = reads_positions_last(kernel.shape[-1])
        order = "bhkt" if narrow else "bhtk"
        y = jnp.einsum(f"btd,dhk->{order}", x, kernel, preferred_element_type=x.dtype)
        if offset is not None:
            y = y + (offset[..., None] if narrow else offset[:, None])
        y = checkpoint_name(y, "weights")
        return jnp.transpose(y, (0, 3, 1, 2) if narrow else (0, 2, 1, 3))
    y = product(x, kernel.reshape(kernel.shape[0], -1), x.dtype, quantized)
    y = y.reshape(*y.shape[:2], *kernel.shape[1:])
    return y if offset is None else y + offset


def from_heads(
    x: Float[Array, "B T H K"],
    kernel: Float[Array, "H K D"],
    quantized: Quantized | None = None,
) -> Float[Array, "B T D"]:
    """Product that adds up heads, as `to_heads`."""
    if platform() == "tpu" and quantized is None:
        y = jnp.einsum("bthk,hkd->btd", x, kernel, preferred_element_type=x.dtype)
        return checkpoint_name(y, "weights")
    rows, width = x.reshape(*x.shape[:2], -1), kernel.shape[-1]
    return product(rows, kernel.reshape(-1, width), x.dtype, quantized)
