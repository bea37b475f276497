"""Feed-forward layer of a transformer block, plain or gated."""

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fmjax.models.layers.activations import ACTIVATIONS, gate_with
from fmjax.models.layers.dropout import Keys, dropout
from fmjax.models.layers.logical_axes import constrain, normal_init, zeros_init
from fmjax.models.layers.quantized import Quantized, product


class FeedForward(nn.Module):
    """Feed-forward layer: act(x W_in) W_out, or gated (Shazeer 2020).

    The gated layer is (act(x W_gate) * x W_in) W_out.

    Attributes:
      mlp_dim: width of the hidden layer.
      activation: a name in `ACTIVATIONS`, or gated "clamped_swiglu".
      gated: whether a second projection gates the first.
      bias: whether the projections have biases.
      init_std: standard deviation of W_in and W_gate.
      out_init_std: standard deviation of W_out.
      dropout: share of the hidden layer dropped in training.
      dtype: of the computation.
      quantized: see `transformer.quantized`.
    """

    mlp_dim: int
    activation: str
    gated: bool
    bias: bool
    init_std: float
    out_init_std: float
    dropout: float
    dtype: jnp.dtype
    quantized: Quantized | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], keys: Keys) -> Float[Array, "B T D"]:
        """Applies the layer to every position."""
        h = self._inward("in", x)
        if self.gated:
            h = gate_with(self.activation, self._inward("gate", x), h)
        else:
            h = ACTIVATIONS[self.activation](h)
        h = constrain(h, "batch", "length", "act_mlp")
        h = dropout(h, self.dropout, keys)
        out_init = normal_init(self.out_init_std, "mlp", "embed")
        kernel = self.param("out", out_init, (self.mlp_dim, x.shape[-1]))
        y = product(h, kernel.astype(self.dtype), self.dtype, self.quantized)
        if self.bias:
            bias = self.param("out_bias", zeros_init("embed"), x.shape[-1:])
            y = y + bias.astype(self.dtype)
        return y

    def _inward(self, name: str, x: Array) -> Array:
        init = normal_init(self.init_std, "embed", "mlp")
        kernel = self.param(name, init, (x.shape[-1], self.mlp_dim))
        h = product(x, kernel.astype(self.dtype), self.dtype, self.quantized)
        if self.bias:
            bias = self.param(f"{name}_bias", zeros_init("mlp"), (self.mlp_dim,))
            h = h + bias.astype(self.dtype)
        return checkpoint_name(h, f"mlp_{name}")
