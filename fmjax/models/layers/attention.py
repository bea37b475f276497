"""Multi-head self- and cross-attention, grouped-query, with a key-value cache."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from fmjax.models.layers.adapters import linear
from fmjax.models.layers.attention_kernels.attend import attend
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_kernels.xla import attention_weights
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.coded_weights import weight
from fmjax.models.layers.disentangled import disentangled_scores
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.logical_axes import constrain, normal_init, zeros_init
from fmjax.models.layers.norms import HeadNorm
from fmjax.models.layers.projections import from_heads, to_heads
from fmjax.models.layers.quantized import Quantized
from fmjax.models.layers.rotary import Rotary, rotate
from fmjax.models.layers.virtual_tokens import read_prefix
from fmjax.sharding.platform import platform

# A collection of flax: a layer stores its weights, float32 [B, H, T, S], where this is
# mutable.
ATTENTION_WEIGHTS = "attention_weights"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """Key-value cache: keys and values of the tokens so far, position s in slot s.

    Since slots are positions, the causal mask hides slots that are not written yet, and
    the padding of shorter prompts until it is overwritten.

    Attributes:
      k: keys [B, S, G, K], with a leading layers axis in a stack.
      v: values [B, S, G, K], with a leading layers axis in a stack.
    """

    k: jax.Array
    v: jax.Array

    def write(self, k: Array, v: Array, positions: Int[Array, "#B T"]):
        """The cache with `k` and `v`, both [B, T, G, K], at `positions`."""
        rows = jnp.arange(k.shape[0])[:, None]
        positions = jnp.broadcast_to(positions, k.shape[:2])
        return KeyValueCache(
            self.k.at[rows, positions].set(k.astype(self.k.dtype)),
            self.v.at[rows, positions].set(v.astype(self.v.dtype)),
        )


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017), grouped (Ainslie et al. 2023).

    Attributes:
      num_heads: query heads.
      num_kv_heads: key and value heads; must divide num_heads.
      head_dim: width of a head.
      cross: whether it is cross-attention, with keys and values from an encoder's
        output.
      qkv_bias: whether the projections to queries, keys and values have biases.
      bias: whether the output projection has a bias.
      rotary: rotary positions of self-attention; None for none, or if they are given.
      qk_norm: norms over queries and keys; None for no norm.
      scale: of the scores; None means head_dim^(-1/2). Query weights are initialized
        with init_std / (scale · √head_dim), as in T5.
      softcap: see `attend`.
      dropout: share of attention weights dropped in training.
      implementation: see `attend`; with a key-value cache it is "auto".
      init_std: standard deviation of the weights of queries, keys and values.
      out_init_std: standard deviation of the output weights.
      dtype: of the computation.
      context_attention: see `attend`.
      block: see `attend`.
      quantized: see `transformer.quantized`.
      multiplier: of the scores, beside `scale`; query weights do not depend on it.
      clip: queries, keys and values are clipped to ± this; None for no clipping.
      sinks: whether a learned score per head takes part in the softmax, see `attend`.
      scale_by_layer: whether scores are divided by the layer's index from 1.
      key_bias: whether keys have a bias where queries and values do.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    cross: bool
    qkv_bias: bool
    bias: bool
    rotary: Rotary | None
    qk_norm: HeadNorm | None
    scale: float | None
    softcap: float | None
    dropout: float
    implementation: str
    init_std: float
    out_init_std: float
    dtype: jnp.dtype
    context_attention: str = "auto"
    block: int | None = None
    quantized: Quantized | None = None
    multiplier: float = 1.0
    clip: float | None = None
    sinks: bool = False
    scale_by_layer: bool = False
    key_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "#B T"],
        mask: AttentionMask,
        bias: Float[Array, "#B H T S"] | DistanceBias | None,
        relative: tuple[Float[Array, "P D"], Int[Array, "#B T S"]] | None,
        encoder_hidden: Float[Array, "#B source E"] | None,
        cache: KeyValueCache | None,
        keys: Keys,
        layer: Int[Array, ""] | None = None,
        angles: tuple[Array, Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """One layer of attention.

        Args:
          x: input of the queries, and in self-attention of the keys and values.
          positions: of x; the cache's slots, and rotary positions after those of a
            prefix.
          mask: which keys each query attends to.
          bias: added to the scores; keys of a prefix come first.
          relative: for disentangled attention: vectors of relative positions, and the
            index of the vector for each query and key; None for none.
          encoder_hidden: input of the keys and values of cross-attention; None if they
            are in the cache.
          cache: keys and values of earlier tokens, or of encoder_hidden in
            cross-attention; None for none. A cache of cross-attention may have fewer
            rows than x: each then serves B / rows consecutive rows of x (beams).
          keys: one random key per example for dropout; None for no dropout.
          layer: index of the layer from 0, for what depends on it.
          angles: sines and cosines, see `rotate`, in place of those of `rotary`.

        Returns:
          The layer's output and, given a cache, the cache with the new keys and values.
        """
        if not self.cross:
            encoder_hidden = x
        std, kv_heads = self.init_std, self.num_kv_heads
        query_std = (
            std if self.scale is None else std / (self.scale * self.head_dim**0.5)
        )
        scale, of_query = self.scale, 1.0
        if self.multiplier != 1.0:
            scale = self.multiplier * (scale or self.head_dim**-0.5)
        changed = self.qk_norm is not None or self.clip is not None
        if platform() == "tpu" and not changed and relative is None:
            # Weights of the queries are scaled in place of every query.
            scale, of_query = 1.0, scale or self.head_dim**-0.5
        to_query = self._projection(
            "query", x.shape[-1], self.num_heads, "heads", query_std, of_query
        )
        q, k, v = to_query(x, keys), None, None
        if encoder_hidden is not None:
            width = encoder_hidden.shape[-1]
            to_key = self._projection("key", width, kv_heads, "kv_heads", std)
            to_value = self._projection("value", width, kv_heads, "kv_heads", std)
            k, v = to_key(encoder_hidden, keys), to_value(encoder_hidden, keys)
        if self.clip is not None:
            bounds = (-self.clip, self.clip)
            q, k, v = (None if x is None else jnp.clip(x, *bounds) for x in (q, k, v))
        if self.qk_norm is not None:
            q = self.qk_norm.make("query_norm", "heads")(q)
            key_norm = self.qk_norm.make("key_norm", "kv_heads")
            k = None if k is None else key_norm(k)
        prefix = None if self.cross else read_prefix(self, len(x), q.dtype)
        ahead = 0 if prefix is None else prefix[0].shape[1]
        if self.rotary is not None and not self.cross:
            local = mask.window_applies
            if local is None:
                local = mask.window is not None
            places = positions + ahead if ahead else positions
            tables = self.rotary.tables(self.head_dim, places, local, layer)
            pairs = self.rotary.interleaved
            q, k = rotate(q, *tables, pairs), rotate(k, *tables, pairs)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if self.scale_by_layer:
            q = (q / (layer + 1)).astype(q.dtype)
        q = constrain(q, "batch", "length", "act_heads", None)
        if k is not None:
            k = constrain(k, "batch", "length", "act_kv_heads", None)
            v = constrain(v, "batch", "length", "act_kv_heads", None)
        q, k, v = (
            None if x is None else checkpoint_name(x, name)
            for x, name in ((q, "query"), (k, "key"), (v, "value"))
        )
        if relative is not None:
            # Three terms: content-content, content-position, position-content.
            scale = self.multiplier * (3 * self.head_dim) ** -0.5
            vectors, rows = relative
            read = (to_query(vectors[None], None)[0], to_key(vectors[None], None)[0])
            scores = disentangled_scores(q, k, *read, rows)
            bias = scale * scores
        if cache is not None:
            if not self.cross:
                cache = cache.write(k, v, positions)
            elif encoder_hidden is not None:
                cache = KeyValueCache(k, v)
            k, v = cache.k.astype(q.dtype), cache.v.astype(q.dtype)
        if prefix is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(prefix, (k, v)))
            mask = mask.behind(ahead)
        if bias is not None and not isinstance(bias, DistanceBias):
            more = bias.shape[-1] - k.shape[1]  # of the prefix of other layers
            bias = bias[..., more:] if more else bias
        if self.cross and len(k) != len(q):
            # Beams share an encoder's output: the queries of all beams of a row become
            # one sequence.
            q = q.reshape(len(k), -1, *q.shape[2:])
        out = self._attend(q, k, v, mask, bias, scale, keys, cache is not None)
        out = out.reshape(*x.shape[:2], *out.shape[2:])
        return self._project_out(out, x.shape[-1], keys), cache

    def _attend(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B S G K"],
        v: Float[Array, "B S G K"],
        mask: AttentionMask,
        bias: Float[Array, "#B H T S"] | DistanceBias | None,
        scale: float | None,
        keys: Keys,
        cached: bool,
    ) -> Float[Array, "B T H K"]:
        """Attention by the layer's kernel; keeps its weights if they are asked for.

        Args:
          q: queries; as of `attend`, likewise all up to `keys`.
          k: keys.
          v: values.
          mask: which keys each query attends to.
          bias: added to the scores.
          scale: of the scores; None means K^(-1/2).
          keys: random keys for dropout.
          cached: whether keys and values are those of a cache.
        """
        sinks = None
        if self.sinks:
            init = normal_init(self.init_std, "heads")
            sinks = self.param("sinks", init, (self.num_heads,))
        if self.is_mutable_collection(ATTENTION_WEIGHTS) and not self.is_initializing():
            of_scores = (self.head_dim**-0.5 if scale is None else scale, self.softcap)
            call = AttentionCall(
                *(q, k, v, mask, bias), *of_scores, 0.0, None, None, sinks
            )
            self.sow(
                ATTENTION_WEIGHTS,
                "weights",
                attention_weights(call),
                init_fn=lambda: None,
                reduce_fn=lambda _, weights: weights,
            )
        implementation = self.implementation
        if self.is_initializing():
            implementation = "xla"  # accepts the small shapes used to initialize
        elif cached:
            implementation = "auto"
        return attend(
            q,
            k,
            v,
            mask,
            bias=bias,
            scale=scale,
            softcap=self.softcap,
            implementation=implementation,
            context_attention=self.context_attention,
            block=self.block,
            dropout_rate=self.dropout,
            keys=keys,
            sinks=sinks,
        )

    def _project_out(
        self, out: Float[Array, "B T H K"], width: int, keys: Keys
    ) -> Float[Array, "B T D"]:
        """The layer's output, of D = `width` features, from those of its heads."""
        init = normal_init(self.out_init_std, "heads", "kv", "embed")
        kernel = weight(self, "out", init, (*out.shape[2:], width), inputs=2)
        offset = None
        if self.bias:
            offset = self.param("out_bias", zeros_init("embed"), (width,))
            offset = offset.astype(self.dtype)

        def multiply(x: Array, weights: Array, offset: Array | None) -> Array:
            y = from_heads(x, weights, self.quantized)
            return y if offset is None else y + offset

        out = out.astype(self.dtype)
        return linear(self, "out", kernel, out, multiply, offset, keys)

    def _projection(
        self,
        name: str,
        width: int,
        heads: int,
        axis: str,
        std: float,
        scale: float = 1.0,
    ) -> Callable:
        """Declares a projection to heads; returns a function that applies it.

        That takes the inputs, and keys for dropout of the inputs of adapters.

        Args:
          name: of the weights.
          width: of the inputs.
          heads: number of heads.
          axis: logical name of the axis of heads.
          std: standard deviation of the initial weights.
          scale: that the outputs are multiplied by.
        """
        init = normal_init(std, "embed", axis, "kv")
        kernel = weight(self, name, init, (width, heads, self.head_dim))
        offset = None
        if self.qkv_bias and (self.key_bias or name != "key"):
            shape = (heads, self.head_dim)
            offset = self.param(f"{name}_bias", zeros_init(axis, "kv"), shape)
            offset = offset if scale == 1.0 else scale * offset
            offset = offset.astype(self.dtype)

        def multiply(x: Array, weights: Array, offset: Array | None) -> Array:
            return to_heads(x, weights, offset, self.quantized)

        def apply(x: Array, keys: Keys) -> Array:
            x = x.astype(self.dtype)
            return linear(self, name, kernel, x, multiply, offset, keys, scale)

        return apply
