"""A stack of transformer blocks, scanned or unrolled, with rematerialization."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.models.layers.attention import Attention, KeyValueCache
from fmjax.models.layers.disentangled import log_bucket
from fmjax.models.layers.mixture_of_experts import MixtureOfExperts, Router
from fmjax.models.layers.position_bias import RelativeBias, alibi
from fmjax.models.layers.primitives import (
    Dense,
    FeedForward,
    Keys,
    Norm,
    constant_init,
    constrain,
    drop_path,
    dropout,
    fold_keys,
    normal_init,
)
from fmjax.models.layers.transformer_config import TransformerConfig

# What the backward pass keeps of a block; the rest is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "weights": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every block of a stack reads beside its input.

    Attributes:
      positions: int [B or 1, T], of each token in its document.
      attention_mask: bool [B or 1, T, S], True where self-attention is allowed; None
        leaves it to the stack's `causal`.
      padding_mask: bool [B, T], False for padding, which visits no expert.
      encoder_hidden: [B, S, D], what cross-attention reads; None also where its keys
        and values are in the cache.
      cross_attention_mask: bool [B, T or 1, S], True where cross-attention is allowed.
      keys: one key per example for dropout.
      bias: [B or 1, H, T, S], added to scores; the stack makes it.
      relative: vectors [P, D] and rows [B or 1, T, S] for disentangled attention; the
        stack makes them.
    """

    positions: Int[Array, "B T"]
    attention_mask: Bool[Array, "B T S"] | None = None
    padding_mask: Bool[Array, "B T"] | None = None
    encoder_hidden: Float[Array, "B S D"] | None = None
    cross_attention_mask: Bool[Array, "B T S"] | None = None
    keys: Keys = None
    bias: Float[Array, "B H T S"] | None = None
    relative: tuple[Array, Array] | None = None


class Cache(NamedTuple):
    """Keys and values of a block, or with a leading layers axis of a stack.

    Attributes:
      self_attention: of earlier tokens.
      cross_attention: of the encoder's output; None in a model without an encoder.
    """

    self_attention: KeyValueCache
    cross_attention: KeyValueCache | None = None


class BlockOutputs(NamedTuple):
    """What a block gives beside its output; a stack adds a leading layers axis.

    Attributes:
      cache: the given cache with these tokens in it, or None.
      router: of a mixture of experts, see `MixtureOfExperts`; empty without one.
      output: [B, T, D], the block's output, where asked for.
    """

    cache: Cache | None
    router: Router
    output: Float[Array, "B T D"] | None


class Block(nn.Module):
    """Self-attention, cross-attention if there is an encoder, feed-forward; each added.

    Attributes:
      config: sizes and choices.
      causal: whether, without a mask, tokens see only what is before them.
      cross: whether there is cross-attention.
      keep_output: whether to give the output a second time, for the stack to keep.
    """

    config: TransformerConfig
    causal: bool
    cross: bool
    keep_output: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer: tuple[Int[Array, ""], Cache | None],
        context: Context,
    ) -> tuple[Float[Array, "B T D"], BlockOutputs]:
        """Applies one layer, given as its index and its cache."""
        index, cache = layer
        keys = fold_keys(context.keys, index)
        own = encoded = None
        if cache is not None:
            own, encoded = cache
        x, own = self._add(
            x,
            "attention",
            fold_keys(keys, 1),
            lambda y: self._attention("attention", cross=False)(
                y,
                positions=context.positions,
                attention_mask=self._window(context, index),
                bias=context.bias,
                relative=context.relative,
                encoder_hidden=None,
                cache=own,
                keys=fold_keys(keys, 0),
            ),
            index,
        )
        if self.cross:
            x, encoded = self._add(
                x,
                "cross_attention",
                fold_keys(keys, 4),
                lambda y: self._attention("cross_attention", cross=True)(
                    y,
                    positions=context.positions,
                    attention_mask=context.cross_attention_mask,
                    bias=None,
                    relative=None,
                    encoder_hidden=context.encoder_hidden,
                    cache=encoded,
                    keys=fold_keys(keys, 3),
                ),
                index,
            )
        x, router = self._add(
            x,
            "mlp",
            fold_keys(keys, 2),
            lambda y: self._feed_forward(
                y, context.padding_mask, own, fold_keys(keys, 5)
            ),
            index,
        )
        cache = None if cache is None else Cache(own, encoded)
        return x, BlockOutputs(cache, router, x if self.keep_output else None)

    def _add(self, x, name, keys, layer, index):
        """x plus what `layer` gives for it, and norms where they belong."""
        c = self.config
        norm = c.make_norm(f"{name}_norm")
        y, beside = layer(x if c.norm_position == "post" else norm(x))
        if c.norm_position == "sandwich":
            y = c.make_norm(f"{name}_out_norm")(y)
        if c.layer_scale is not None:
            init = constant_init(c.layer_scale, "norm")
            factors = self.param(f"{name}_scale", init, y.shape[-1:])
            y = y * factors.astype(y.dtype)
        y = dropout(y, c.dropout, keys)
        if c.stochastic_depth:
            rate = c.stochastic_depth * (index + 1) / c.num_layers
            y = drop_path(y, rate, fold_keys(keys, 0))
        x = x + y
        if c.norm_position == "post":
            x = norm(x)
        return constrain(x, "batch", "length", "act_embed"), beside

    def _attention(self, name: str, cross: bool) -> Attention:
        c = self.config
        return Attention(
            num_heads=c.num_heads,
            num_kv_heads=c.kv_heads,
            head_dim=c.head_width,
            cross=cross,
            causal=self.causal,
            qkv_bias=c.bias if c.qkv_bias is None else c.qkv_bias,
            bias=c.bias,
            rope_theta=c.rope_theta,
            qk_norm=c.norm_epsilon if c.qk_norm else None,
            scale=c.attention_scale,
            softcap=c.attention_softcap,
            dropout=c.attention_dropout,
            implementation=c.attention,
            init_std=c.init_std,
            out_init_std=c.out_init_std,
            dtype=c.compute_dtype,
            name=name,
        )

    def _window(self, context: Context, index: Int[Array, ""]) -> Array | None:
        """The mask of this layer, of a window or of all."""
        c = self.config
        if c.global_every is None or context.attention_mask is None:
            return context.attention_mask
        # Both were made once for all layers: [2, B, T, S], windowed and whole.
        return jnp.where(
            (index + 1) % c.global_every == 0, *context.attention_mask[::-1]
        )

    def _feed_forward(
        self,
        x: Array,
        padding_mask: Array | None,
        cache: KeyValueCache | None,
        keys: Keys,
    ):
        c = self.config
        shared = {
            "mlp_dim": c.mlp_width,
            "activation": c.activation,
            "gated": c.gated_mlp,
            "init_std": c.init_std,
            "out_init_std": c.out_init_std,
            "dtype": c.compute_dtype,
            "name": "mlp",
        }
        if c.num_experts is None:
            layer = FeedForward(bias=c.bias, dropout=c.mlp_dropout, **shared)
            return layer(x, keys), {}
        return MixtureOfExperts(
            num_experts=c.num_experts,
            per_token=c.experts_per_token,
            # Of a sequence that is still being written nobody knows a fair share.
            capacity=c.expert_capacity if cache is None else None,
            **shared,
        )(x, padding_mask)


class Stack(nn.Module):
    """All blocks; before them a projection of vectors of another width, a norm after.

    Where blocks end with a norm of their own, there is no final one.

    Attributes:
      config: sizes and choices.
      causal: whether, without a mask, tokens see only what is before them.
      cross: whether blocks have cross-attention.
    """

    config: TransformerConfig
    causal: bool = True
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T E"],
        context: Context,
        cache: Cache | None = None,
        hidden_states: bool = False,
    ) -> dict[str, Any]:
        """Applies every block in turn.

        Returns:
          hidden: [B, T, D], after the final norm; cache: the given one with these
          tokens in it, or None; router: [layers, B] each, see `MixtureOfExperts`, empty
          without one; hidden_states where asked for: [layers + 1, B, T, D], the first
          block's input and every block's output, the last one after the final norm.
        """
        c = self.config
        if x.shape[-1] != c.embed_dim:
            axes = (None, "embed")
            x = Dense(
                c.embed_dim, axes, True, c.init_std, c.compute_dtype, name="project"
            )(x)
        context = self._with_positions(context, cache)
        y, beside = self._blocks(x, context, cache, hidden_states)
        if c.norm_position != "post":
            y = c.make_norm("final_norm")(y)
        out = {"hidden": y, "cache": beside.cache, "router": beside.router}
        if hidden_states:
            inner = beside.output[:-1]
            out["hidden_states"] = jnp.concatenate([x[None], inner, y[None]])
        return out

    def _blocks(
        self, x: Array, context: Context, cache: Cache | None, keep_outputs: bool
    ) -> tuple[Array, BlockOutputs]:
        c = self.config
        block = Block
        if c.remat != "none":
            # Inside a scan XLA cannot undo rematerialization, so need not be stopped.
            block = nn.remat(
                Block, policy=REMAT_POLICIES[c.remat], prevent_cse=not c.scan_layers
            )
        arguments = (c, self.causal, self.cross, keep_outputs)
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                out_axes=0,
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(*arguments, name="layers")
            return scanned(x, (jnp.arange(c.num_layers), cache), context)
        every = []
        for i in range(c.num_layers):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], cache)
            one = block(*arguments, name=f"layer_{i}")
            x, beside = one(x, (jnp.int32(i), own), context)
            every.append(beside)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)

    def _with_positions(self, context: Context, cache: Cache | None) -> Context:
        """The context with all that depends on both a query's and a key's position."""
        c = self.config
        queries = keys = context.positions
        if cache is not None:
            keys = jnp.arange(cache.self_attention.k.shape[-3])[None]
        mask = context.attention_mask
        if c.window is not None:
            if mask is None and self.causal:
                mask = keys[:, None, :] <= queries[:, :, None]
            near = queries[:, :, None] - keys[:, None, :] < c.window
            windowed = near if mask is None else mask & near
            if c.global_every is not None:
                whole = jnp.ones_like(windowed) if mask is None else mask
                windowed = jnp.stack(jnp.broadcast_arrays(windowed, whole))
            mask = windowed
        bias = relative = None
        if c.position_bias == "alibi":
            bias = alibi(c.num_heads, queries, keys)
        elif c.position_bias == "buckets":
            bias = RelativeBias(
                c.num_heads,
                c.relative_buckets,
                c.relative_max_distance,
                self.causal,
                c.init_std,
                name="relative_bias",
            )(queries, keys)
        elif c.position_bias == "disentangled":
            relative = self._relative_vectors(queries, keys)
        return dataclasses.replace(
            context, attention_mask=mask, bias=bias, relative=relative
        )

    def _relative_vectors(self, queries: Array, keys: Array) -> tuple[Array, Array]:
        c = self.config
        shape = (2 * c.relative_buckets, c.embed_dim)
        init = normal_init(c.init_std, "bucket", "embed")
        table = self.param("relative_vectors", init, shape).astype(c.compute_dtype)
        norm = Norm("layernorm", c.norm_epsilon, c.bias, name="relative_norm")
        offset = queries[:, :, None] - keys[:, None, :]
        rows = offset
        if c.relative_max_distance is not None:
            rows = log_bucket(offset, c.relative_buckets, c.relative_max_distance)
        rows = jnp.clip(rows + c.relative_buckets, 0, shape[0] - 1)
        return norm(table), rows


def empty_cache(
    config: TransformerConfig, rows: int, length: int, encoder_length: int | None = None
) -> Cache:
    """An empty cache of `length` positions a row, and of an encoder's output."""
    c = config

    def zeros(length):
        shape = (c.num_layers, rows, length, c.kv_heads, c.head_width)
        return KeyValueCache(
            jnp.zeros(shape, c.compute_dtype), jnp.zeros(shape, c.compute_dtype)
        )

    return Cache(
        zeros(length), None if encoder_length is None else zeros(encoder_length)
    )


def stack_layers(params: dict, num_layers: int) -> dict:
    """A stack's parameters with `layer_0 … layer_{n-1}` joined as `layers`."""
    names = [f"layer_{i}" for i in range(num_layers)]
    joined = jax.tree.map(lambda *xs: jnp.stack(xs), *(params[name] for name in names))
    rest = {name: tree for name, tree in params.items() if name not in names}
    return {**rest, "layers": joined}


def unstack_layers(params: dict, num_layers: int) -> dict:
    """The inverse of `stack_layers`."""
    rest = {name: tree for name, tree in params.items() if name != "layers"}
    return rest | {
        f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        for i in range(num_layers)
    }
