"""Normalization layers."""

import dataclasses
from typing import Literal

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
      weights: whether there are weights; without, there is no bias either (OLMo,
        Groeneveld et al. 2024).
      heads: logical name of the axis of heads, for weights [H, K] that each head has
        for itself; None for weights of the last axis alone.
      joint: whether mean and variance are those of all heads, not of each.
    """

    kind: str
    epsilon: float
    bias: bool
    unit_offset: bool = False
    axis: str = "norm"
    weights: bool = True
    heads: str | None = None
    joint: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes over the last axis, or over the last two; keeps the dtype."""
        names = (self.axis,) if self.heads is None else (self.heads, self.axis)
        shape, over = x.shape[-len(names) :], (-2, -1) if self.joint else -1
        if self.weights:
            init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
            init = nn.with_logical_partitioning(init, names)
            scale = self.param("scale", init, shape).astype(jnp.float32)
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(over, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, over, keepdims=True) + self.epsilon)
        if self.weights:
            y = y * (scale + 1 if self.unit_offset else scale)
            if self.bias and self.kind == "layernorm":
                y = y + self.param("bias", zeros_init(*names), shape)
        return y.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """The norms over queries and keys of an attention layer.

    Attributes:
      kind: as of `Norm`, likewise the next two.
      epsilon: added to the variance or mean square.
      unit_offset: whether parameters are weights minus one.
      weights: "shared" by all heads (Dehghani et al. 2023), of "each_head", or of
        "all_heads" that are normalized as one vector (OLMo 2).
    """

    kind: str
    epsilon: float
    unit_offset: bool
    weights: Literal["shared", "each_head", "all_heads"]

    def make(self, name: str, heads: str) -> Norm:
        """The norm of this name over vectors [B, T, H, K].

        Args:
          name: of its parameters.
          heads: logical name of the axis H.
        """
        # The axis of shared weights is the head width, which is never sharded.
        own = None if self.weights == "shared" else heads
        joint = self.weights == "all_heads"
        return Norm(
            *(self.kind, self.epsilon, False, self.unit_offset, "kv"),
            heads=own,
            joint=joint,
            name=name,
        )
