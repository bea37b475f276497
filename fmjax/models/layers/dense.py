"""Matrix product with its own backward pass, and a dense layer."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fmjax.models.layers.adapters import linear
from fmjax.models.layers.coded_weights import weight
from fmjax.models.layers.logical_axes import normal_init, zeros_init
from fmjax.sharding.platform import platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    x: Float[Array, "... I"], kernel: Float[Array, "I O"], out_dtype: jnp.dtype
) -> Float[Array, "... O"]:
    """Matrix product x @ kernel, with a backward pass in the dtype of `x`.

    JAX by default multiplies a float32 gradient of logits in float32, at a fraction of
    the speed of bfloat16, and computes the kernel's gradient as (gradient^T x)^T, for
    which XLA's CPU backend copies the larger operand.
    """
    return _product(x, kernel, out_dtype)


def _product(x, kernel, out_dtype):
    y = jnp.einsum("...i,io->...o", x, kernel, preferred_element_type=out_dtype)
    return checkpoint_name(y, "weights")


def _matmul_forward(x, kernel, out_dtype):
    # Not `matmul` itself, which would hide the product and its name from
    # rematerialization policies.
    return _product(x, kernel, out_dtype), (x, kernel)


def _matmul_backward(out_dtype, operands, gradient):
    x, kernel = operands
    gradient = gradient.astype(x.dtype)
    into_x = jnp.einsum("...o,io->...i", gradient, kernel)
    if platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1:
        # XLA's CPU backend transposes operands that share more than one axis in a loop
        # of its own, instead of within the product.
        x, gradient = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
    into_kernel = jnp.einsum("...i,...o->io", x, gradient)
    return into_x, into_kernel


matmul.defvjp(_matmul_forward, _matmul_backward)


class Dense(nn.Module):
    """Dense layer: x W + b.

    Attributes:
      features: width of the output.
      axes: logical names of the weight's two axes.
      bias: whether there is a bias b.
      init_std: standard deviation of the weight.
      dtype: of the computation.
    """

    features: int
    axes: tuple[str | None, str | None]
    bias: bool
    init_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Applies the layer to the last axis."""
        shape = (x.shape[-1], self.features)
        init = normal_init(self.init_std, *self.axes)
        kernel = weight(self, "kernel", init, shape)
        bias = None
        if self.bias:
            bias = self.param("bias", zeros_init(self.axes[1]), shape[1:])
            bias = bias.astype(self.dtype)

        def multiply(x: Array, weights: Array, offset: Array | None) -> Array:
            y = matmul(x, weights, self.dtype)
            return y if offset is None else y + offset

        return linear(self, "kernel", kernel, x.astype(self.dtype), multiply, bias)
