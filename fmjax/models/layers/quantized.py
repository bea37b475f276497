"""Matrix products in eight bits while training, by qwix (extra `quantized`).

Every row of the inputs and every column of the weights is divided by its largest
magnitude. The product and the gradient of its inputs are computed in eight bits, the
gradient of the weights, which is summed over many rows, in the dtype of the inputs
(Wortsman et al. 2023, SwitchBack). Rounding counts as the identity in gradients.
"""

import functools
import importlib.util
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fmjax.models.layers.dense import matmul

Quantized = Literal["int8", "float8"]
# Of inputs and weights, and of gradients, whose range is wider.
_TYPES = {
    "int8": (jnp.int8, jnp.int8),
    "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}


def is_installed() -> bool:
    """Whether qwix is."""
    return importlib.util.find_spec("qwix") is not None


def product(
    x: Float[Array, "... I"],
    kernel: Float[Array, "I O"],
    out_dtype: jnp.dtype,
    quantized: Quantized | None = None,
) -> Float[Array, "... O"]:
    """x @ kernel, see `matmul`; in eight bits if `quantized` says which."""
    if quantized is None:
        return matmul(x, kernel, out_dtype)
    return _in_eight_bits(x, kernel, out_dtype, quantized)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _in_eight_bits(x, kernel, out_dtype, quantized):
    return _forward(x, kernel, out_dtype, quantized)[0]


def _forward(x, kernel, out_dtype, quantized):
    dtype, _ = _TYPES[quantized]
    y = _product(x, kernel, 0, dtype, dtype, out_dtype)
    return checkpoint_name(y, "weights"), (x, kernel)


def _backward(out_dtype, quantized, operands, gradient):
    del out_dtype
    x, kernel = operands
    gradient = gradient.astype(x.dtype)
    dtype, of_gradients = _TYPES[quantized]
    into_x = _product(gradient, kernel, 1, of_gradients, dtype, x.dtype)
    into_kernel = jnp.einsum("...i,...o->io", x, gradient)
    return into_x, into_kernel.astype(kernel.dtype)


_in_eight_bits.defvjp(_forward, _backward)


def _product(x, kernel, axis: int, x_type, kernel_type, out_dtype) -> Array:
    """The product of x's last axis and an axis of the kernel, both rounded."""
    # On first use, as few runs need it.
    import qwix

    rows = qwix.quantize(x, x_type, channelwise_axes=range(x.ndim - 1))
    columns = qwix.quantize(kernel, kernel_type, channelwise_axes=(1 - axis,))
    contracted = (((x.ndim - 1,), (axis,)), ((), ()))
    return qwix.dot_general(rows, columns, contracted).astype(out_dtype)
