"""A stack of transformer blocks, scanned or unrolled, with rematerialization."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.layers.attention import KeyValueCache
from fmjax.models.layers.block import Block, BlockOutputs, Cache, Context
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.disentangled import Disentangled, log_bucket
from fmjax.models.layers.logical_axes import normal_init
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.position_bias import (
    Alibi,
    RelativeBias,
    RelativeBuckets,
    alibi,
)
from fmjax.models.layers.transformer_config import TransformerConfig

# What the backward pass keeps of a block; the rest is computed again.
# `matmul` and mixtures of experts name their products "weights", the attention kernels
# what their backward passes want "attention".
_NAMED = jax.checkpoint_policies.save_only_these_names
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": _NAMED("attention"),
    "weights": _NAMED("weights"),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, _NAMED("attention", "weights")
    ),
}


class Stack(nn.Module):
    """All blocks; before them a projection of vectors of another width, a norm after.

    Where blocks end with a norm of their own, there is no final one.

    Attributes:
      config: sizes and choices.
      cross: whether blocks have cross-attention.
    """

    config: TransformerConfig
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
        arguments = (c, self.cross, keep_outputs)
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
        """The context with the window, and what is added for pairs of positions."""
        c = self.config
        queries = keys = context.positions
        if cache is not None:
            keys = jnp.arange(cache.self_attention.k.shape[-3])[None]
        bias = relative = None
        match c.position_bias:
            case Alibi():
                bias = alibi(c.num_heads, queries, keys)
            case RelativeBuckets():
                bias = RelativeBias(
                    c.num_heads,
                    c.position_bias,
                    context.mask.causal,
                    c.init_std,
                    name="relative_bias",
                )(queries, keys)
            case Disentangled():
                relative = self._relative_vectors(c.position_bias, queries, keys)
        mask = dataclasses.replace(context.mask, window=c.window)
        return dataclasses.replace(context, mask=mask, bias=bias, relative=relative)

    def _relative_vectors(
        self, positions: Disentangled, queries: Array, keys: Array
    ) -> tuple[Array, Array]:
        c, buckets = self.config, positions.buckets
        shape = (2 * buckets, c.embed_dim)
        init = normal_init(c.init_std, "bucket", "embed")
        table = self.param("relative_vectors", init, shape).astype(c.compute_dtype)
        norm = Norm("layernorm", c.norm_epsilon, c.bias, name="relative_norm")
        offset = queries[:, :, None] - keys[:, None, :]
        rows = offset
        if positions.max_distance is not None:
            rows = log_bucket(offset, buckets, positions.max_distance)
        rows = jnp.clip(rows + buckets, 0, shape[0] - 1)
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
