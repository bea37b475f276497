"""Normalization layers."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.layers.logical_axes import zeros_init


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019), in float32.

    Attributes:
      kind: "layernorm" or "rmsnorm".
      epsilon: added to the variance or mean square.
      bias: whether LayerNorm has a bias; RMSNorm never has one.
      unit_offset: whether the parameter is the weight minus one, as in Gemma.
      axis: logical name of the last axis.
    """

    kind: str
    epsilon: float
    bias: bool
    unit_offset: bool = False
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes over the last axis; keeps the dtype."""
        init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        init = nn.with_logical_partitioning(init, (self.axis,))
        scale = self.param("scale", init, x.shape[-1:]).astype(jnp.float32)
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
        y = y * (scale + 1 if self.unit_offset else scale)
        if self.bias and self.kind == "layernorm":
            y = y + self.param("bias", zeros_init(self.axis), x.shape[-1:])
        return y.astype(x.dtype)
