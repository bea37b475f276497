"""Multi-head attention with grouped queries, rotary positions, packing and a cache."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.models.layers import (
    Keys,
    constrain,
    dropout,
    matmul,
    normal_init,
    zeros_init,
)


def rotate(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T H K"]:
    """Rotary position embedding (Su et al. 2021), halves paired as in Llama.

    Pair i of the K/2 pairs (x_i, x_{i+K/2}) turns by position · theta^(-2i/K).
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: Bool[Array, "B T S"] | None,
    *,
    implementation: str = "auto",
    dropout_rate: float = 0.0,
    keys: Keys = None,
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K)) v, each of the G key heads serving H / G query heads.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: where attention is allowed; None means causal, for T = S.
      implementation: "xla", "cudnn" (flash attention on NVIDIA; float16 or bfloat16,
        no dropout), or "auto", which takes cudnn where it can.
      dropout_rate: share of the attention weights that is dropped.
      keys: one key per example, or None for no dropout.
    """
    dropping = keys is not None and dropout_rate > 0
    if implementation == "auto":
        fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0
        fits = fits and q.shape[-1] <= 256 and not dropping
        on_gpu = jax.default_backend() == "gpu"
        implementation = "cudnn" if on_gpu and fits else "xla"
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=None if mask is None else mask[:, None],
            is_causal=mask is None,
            implementation="cudnn",
        )
    B, T, H, K = q.shape
    S, G = k.shape[1:3]
    if mask is None:
        mask = (jnp.arange(T)[:, None] >= jnp.arange(S))[None]
    grouped = (q * K**-0.5).reshape(B, T, G, H // G, K)
    scores = jnp.einsum(
        "btgrk,bsgk->bgrts", grouped, k, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, keys)
    out = jnp.einsum("bgrts,bsgk->btgrk", weights.astype(v.dtype), v)
    return out.reshape(B, T, H, K)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of what was read so far; slot s holds position s of its row.

    Because a slot is a position, the causal mask alone hides what was not written yet
    and the padding of shorter prompts until it is overwritten.

    Attributes:
      k: [B, S, G, K], with a leading layers axis in a stack.
      v: [B, S, G, K], likewise.
    """

    k: jax.Array
    v: jax.Array

    def write(self, k: Array, v: Array, positions: Int[Array, "B T"]):
        """The cache with `k` and `v`, both [B, T, G, K], at `positions`."""
        rows = jnp.arange(k.shape[0])[:, None]
        return KeyValueCache(
            self.k.at[rows, positions].set(k.astype(self.k.dtype)),
            self.v.at[rows, positions].set(v.astype(self.v.dtype)),
        )


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017), grouped (Ainslie et al. 2023).

    Attributes:
      num_heads: query heads.
      num_kv_heads: key and value heads; must divide num_heads.
      head_dim: width of a head.
      bias: whether the projections have offsets.
      rope_theta: base of the rotary frequencies; None for no rotary positions.
      dropout: share of attention weights dropped in training.
      implementation: see `attend`.
      init_std: standard deviation of the inward weights.
      out_init_std: standard deviation of the outward weights.
      dtype: of the computation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    bias: bool
    rope_theta: float | None
    dropout: float
    implementation: str
    init_std: float
    out_init_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | None,
        cache: KeyValueCache | None,
        keys: Keys,
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """Returns the layer's output and, given a cache, the cache with x written."""
        q = self._project("query", x, self.num_heads, "heads")
        k = self._project("key", x, self.num_kv_heads, "kv_heads")
        v = self._project("value", x, self.num_kv_heads, "kv_heads")
        if self.rope_theta is not None:
            q = rotate(q, positions, self.rope_theta)
            k = rotate(k, positions, self.rope_theta)
        q = constrain(q, "batch", "length", "act_heads", None)
        k = constrain(k, "batch", "length", "act_kv_heads", None)
        v = constrain(v, "batch", "length", "act_kv_heads", None)
        if cache is not None:
            cache = cache.write(k, v, positions)
            k, v = cache.k.astype(q.dtype), cache.v.astype(q.dtype)
        out = attend(
            q,
            k,
            v,
            mask,
            implementation=self.implementation,
            dropout_rate=self.dropout,
            keys=keys,
        )
        kernel = self.param(
            "out",
            normal_init(self.out_init_std, "heads", "kv", "embed"),
            (self.num_heads, self.head_dim, x.shape[-1]),
        )
        out = out.reshape(*out.shape[:2], -1)
        kernel = kernel.astype(self.dtype).reshape(-1, x.shape[-1])
        y = matmul(out, kernel, self.dtype)
        if self.bias:
            bias = self.param("out_bias", zeros_init("embed"), x.shape[-1:])
            y = y + bias.astype(self.dtype)
        return y, cache

    def _project(self, name: str, x: Array, heads: int, axis: str) -> Array:
        init = normal_init(self.init_std, "embed", axis, "kv")
        kernel = self.param(name, init, (x.shape[-1], heads, self.head_dim))
        kernel = kernel.astype(self.dtype).reshape(x.shape[-1], -1)
        y = matmul(x, kernel, self.dtype)
        y = y.reshape(*y.shape[:2], heads, self.head_dim)
        if self.bias:
            shape = (heads, self.head_dim)
            bias = self.param(f"{name}_bias", zeros_init(axis, "kv"), shape)
            y = y + bias.astype(self.dtype)
        return y
