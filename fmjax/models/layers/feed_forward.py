"""Feed-forward layer of a transformer block, plain or gated."""

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fmjax.models.layers.activations import ACTIVATIONS, gate_with
from fmjax.models.layers.adapters import linear
from fmjax.models.layers.coded_weights import weight
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
        h = self._inward("in", x, keys)
        if self.gated:
            h = gate_with(self.activation, self._inward("gate", x, keys), h)
        else:
            h = ACTIVATIONS[self.activation](h)
        h = constrain(h, "batch", "length", "act_mlp")
        h = dropout(h, self.dropout, keys)
        axes = ("mlp", "embed")
        return self._product("out", self.out_init_std, axes, h, x.shape[-1], keys)

    def _inward(self, name: str, x: Array, keys: Keys) -> Array:
        axes = ("embed", "mlp")
        h = self._product(name, self.init_std, axes, x, self.mlp_dim, keys)
        return checkpoint_name(h, f"mlp_{name}")

    def _product(
        self,
        name: str,
        std: float,
        axes: tuple[str, str],
        x: Array,
        width: int,
        keys: Keys,
    ) -> Array:
        kernel = weight(self, name, normal_init(std, *axes), (x.shape[-1], width))
        bias = None
        if self.bias:
            bias = self.param(f"{name}_bias", zeros_init(axes[1]), (width,))
            bias = bias.astype(self.dtype)

        def multiply(x: Array, weights: Array, offset: Array | None) -> Array:
            y = product(x, weights, self.dtype, self.quantized)
            return y if offset is None else y + offset

        x = x.astype(self.dtype)
        return linear(self, name, kernel, x, multiply, bias, keys)
