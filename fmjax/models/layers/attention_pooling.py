"""Attention pooling: a sequence is reduced to a few vectors by learned queries."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.layers.attention import Attention
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.feed_forward import FeedForward
from fmjax.models.layers.logical_axes import normal_init
from fmjax.models.layers.transformer_config import TransformerConfig


class AttentionPooling(nn.Module):
    """Multi-head attention pooling: learned queries attend to all vectors.

    The output of attention is normalized (CoCa, Yu et al. 2022, section 3.2), or a
    feed-forward layer with a norm before it and a residual connection follows (Zhai et
    al. 2022, "Scaling vision transformers").

    Attributes:
      config: of the transformer whose output is pooled.
      queries: Q, number of learned queries.
      feed_forward: whether there is a feed-forward layer.
    """

    config: TransformerConfig
    queries: int
    feed_forward: bool

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], keys: Keys
    ) -> Float[Array, "B Q D"]:
        """The pooled vectors of each sequence."""
        c = self.config
        B, _, D = hidden.shape
        init = normal_init(c.init_std, None, "norm")
        query = self.param("query", init, (self.queries, D))
        query = jnp.broadcast_to(query.astype(hidden.dtype), (B, self.queries, D))
        found, _ = Attention(
            num_heads=c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.head_width,
            cross=True,
            qkv_bias=c.bias,
            bias=c.bias,
            rotary=None,
            qk_norm=None,
            scale=None,
            multiplier=c.multipliers.attention,
            softcap=None,
            dropout=0.0,
            implementation="xla",  # a few queries: no [T, S] that a kernel could save
            init_std=c.init_std,
            out_init_std=c.init_std,
            dtype=c.compute_dtype,
            name="attention",
        )(
            query,
            positions=jnp.zeros((1, self.queries), jnp.int32),
            mask=AttentionMask(),
            bias=None,
            relative=None,
            encoder_hidden=hidden,
            cache=None,
            keys=None,
        )
        normalized = c.make_norm("norm")(found)
        if not self.feed_forward:
            return normalized
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
        return found + layer(normalized, fold_keys(keys, 0))


def pooling_flops(params, config: TransformerConfig, length: int) -> float:
    """Matrix FLOPs of a training step per sequence of `length` vectors.

    Args:
      params: of an `AttentionPooling`, or their shapes.
      config: of the transformer whose output is pooled.
      length: vectors of a sequence.
    """
    c, attention = config, params["attention"]
    queries = params["query"].shape[0]
    read = sum(attention[name].size for name in ("key", "value"))
    asked = sum(attention[name].size for name in ("query", "out"))
    if "mlp" in params:
        matrices = (leaf for leaf in params["mlp"].values() if leaf.ndim == 2)
        asked += sum(leaf.size for leaf in matrices)
    products = 12.0 * c.num_heads * c.head_width * length * queries
    return 6.0 * (length * read + queries * asked) + products
