"""One vector of a sequence, by attention of a learned query."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.attention import Attention
from fmjax.models.layers import FeedForward, Keys, fold_keys, normal_init
from fmjax.models.transformer_config import TransformerConfig


class AttentionPooling(nn.Module):
    """Multi-head attention pooling (Zhai et al. 2022, "Scaling vision transformers").

    A learned query attends to all vectors; a feed-forward layer with a norm before it
    is added to what it finds.

    Attributes:
      config: of the transformer whose vectors these are.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], keys: Keys
    ) -> Float[Array, "B D"]:
        """The pooled vector of each sequence."""
        c = self.config
        B, _, D = hidden.shape
        query = self.param("query", normal_init(c.init_std, "norm"), (D,))
        query = jnp.broadcast_to(query.astype(hidden.dtype), (B, 1, D))
        found, _ = Attention(
            num_heads=c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_width,
            cross=True,
            causal=False,
            inward_bias=c.bias,
            bias=c.bias,
            rope_theta=None,
            qk_norm=None,
            scale=None,
            softcap=None,
            dropout=0.0,
            implementation=c.attention,
            init_std=c.init_std,
            out_init_std=c.init_std,
            dtype=c.compute_dtype,
            name="attention",
        )(
            query,
            positions=jnp.zeros((1, 1), jnp.int32),
            mask=None,
            bias=None,
            relative=None,
            source=hidden,
            cache=None,
            keys=None,
        )
        layer = FeedForward(
            mlp_dim=c.mlp_width,
            activation=c.activation,
            gated=c.gated_mlp,
            bias=c.bias,
            init_std=c.init_std,
            out_init_std=c.init_std,
            dropout=c.mlp_dropout,
            dtype=c.compute_dtype,
            name="mlp",
        )
        return (found + layer(c.make_norm("norm")(found), fold_keys(keys, 0)))[:, 0]
