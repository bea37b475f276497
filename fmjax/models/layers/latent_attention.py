"""Multi-head latent attention (DeepSeek-V2, DeepSeek-AI 2024)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from fmjax.models.layers.adapters import linear
from fmjax.models.layers.attention import Attention, KeyValueCache
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.coded_weights import weight
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.logical_axes import constrain, normal_init, zeros_init
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.projections import to_heads
from fmjax.models.layers.quantized import product
from fmjax.models.layers.rotary import rotate


class LatentAttention(Attention):
    """Self-attention whose keys and values are projections of a latent vector.

    DeepSeek-V2, section 2.1: with c = norm(x W_down), key and value of head h are
    [c W_key,h; r] and c W_value,h, where r = rotate(x W_rotary) is the same for all
    heads. The cache holds c and r, and keys and values are projected from all of it at
    every step of decoding. Query weights are initialized with init_std, whatever
    `scale` is.

    Attributes:
      latent: the widths.
    """

    latent: Latent | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "#B T"],
        mask: AttentionMask,
        bias: Float[Array, "#B H T S"] | DistanceBias | None,
        relative: tuple[Array, Array] | None,
        encoder_hidden: Float[Array, "#B source E"] | None,
        cache: KeyValueCache | None,
        keys: Keys,
        layer: Int[Array, ""] | None = None,
        angles: tuple[Array, Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """One layer of attention; arguments and outputs are those of `Attention`.

        There are no position biases, relative vectors, angles and encoders: the config
        excludes the first three, and cross-attention is an `Attention`.
        """
        del bias, relative, encoder_hidden, angles
        c, H = self.latent, self.num_heads
        plain = self.head_dim - c.rotary_dim
        scale = self.multiplier * (self.scale or self.head_dim**-0.5)
        q = self._queries(x, keys)
        latent = self._norm("latent_norm")(self._down("latent", x, c.rank, keys))
        turning = self._down("rotary_key", x, c.rotary_dim, keys)[:, :, None]
        local = mask.window_applies
        if local is None:
            local = mask.window is not None
        tables = self.rotary.tables(c.rotary_dim, positions, local, layer)
        pairs = self.rotary.interleaved
        turned = rotate(q[..., plain:], *tables, pairs)
        q = jnp.concatenate([q[..., :plain], turned], axis=-1)
        turning = rotate(turning, *tables, pairs)
        if cache is not None:
            cache = cache.write(latent[:, :, None], turning, positions)
            latent = cache.k[:, :, 0].astype(self.dtype)
            turning = cache.v.astype(self.dtype)
        k = self._up("key", latent, plain, keys)
        v = self._up("value", latent, c.value_dim, keys)
        turning = jnp.broadcast_to(turning, (*k.shape[:3], c.rotary_dim))
        k = jnp.concatenate([k, turning], axis=-1)
        q = constrain(q, "batch", "length", "act_heads", None)
        k = constrain(k, "batch", "length", "act_kv_heads", None)
        v = constrain(v, "batch", "length", "act_kv_heads", None)
        q, k, v = (
            checkpoint_name(x, name)
            for x, name in ((q, "query"), (k, "key"), (v, "value"))
        )
        # Kernels take one width for all three.
        v = jnp.pad(v, ((0, 0),) * 3 + ((0, self.head_dim - c.value_dim),))
        out = self._attend(q, k, v, mask, None, scale, keys, cache is not None)
        out = out.reshape(*x.shape[:2], H, self.head_dim)[..., : c.value_dim]
        return self._project_out(out, x.shape[-1], keys), cache

    def _queries(self, x: Float[Array, "B T D"], keys: Keys) -> Float[Array, "B T H K"]:
        if self.latent.query_rank is not None:
            x = self._down("query_latent", x, self.latent.query_rank, keys)
            x = self._norm("query_latent_norm")(x)
        return self._up("query", x, self.head_dim, keys)

    def _norm(self, name: str) -> Norm:
        return Norm("rmsnorm", self.latent.norm_epsilon, False, axis="kv", name=name)

    def _down(
        self, name: str, x: Array, width: int, keys: Keys
    ) -> Float[Array, "B T width"]:
        shape = (x.shape[-1], width)
        kernel = weight(self, name, normal_init(self.init_std, "embed", None), shape)
        offset = None
        if self.qkv_bias:
            offset = self.param(f"{name}_bias", zeros_init(None), (width,))
            offset = offset.astype(self.dtype)

        def multiply(x: Array, weights: Array, offset: Array | None) -> Array:
            y = product(x, weights, self.dtype, self.quantized)
            return y if offset is None else y + offset

        return linear(self, name, kernel, x.astype(self.dtype), multiply, offset, keys)

    def _up(
        self, name: str, x: Array, width: int, keys: Keys
    ) -> Float[Array, "B T H width"]:
        shape = (x.shape[-1], self.num_heads, width)
        # Sharded as weights that read the stack's width: it may be as wide.
        init = normal_init(self.init_std, "embed", "heads", "kv")
        kernel = weight(self, name, init, shape)

        def multiply(x: Array, weights: Array, offset: Array | None) -> Array:
            return to_heads(x, weights, offset, self.quantized)

        return linear(self, name, kernel, x.astype(self.dtype), multiply, None, keys)
