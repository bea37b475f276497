"""Transformer stack: blocks, scanned or unrolled, with rematerialization."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.errors import UserError
from fmjax.models.layers.attention import ATTENTION_WEIGHTS, KeyValueCache
from fmjax.models.layers.block import Block, BlockOutputs, Cache, Context
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.disentangled import Disentangled, log_bucket
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.logical_axes import (
    constrain,
    constrain_residual,
    mesh_axes,
    normal_init,
    shards,
)
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.patch_grid import PatchGrid
from fmjax.models.layers.patch_rotary import PatchRotary
from fmjax.models.layers.pipeline import Pipeline
from fmjax.models.layers.position_bias import (
    Alibi,
    RelativeBuckets,
    RelativeGrid,
    alibi,
)
from fmjax.models.layers.relative_bias import RelativeBias, bucketed, on_grid
from fmjax.models.layers.remat import remat_policy
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.layers.virtual_tokens import prefix_length
from fmjax.models.layers.zigzag import from_zigzag, to_zigzag, whole_to_zigzag
from fmjax.models.parameter_paths import DENSE, SCANNED, SHARED
from fmjax.sharding.platform import platform


class Stack(nn.Module):
    """Transformer stack: blocks and a final norm.

    An input of another width than D is projected to D first. There is no final norm if
    blocks end with a norm.

    Attributes:
      config: of the stack.
      cross: whether blocks have cross-attention.
      final_norm: whether there is a final norm, if blocks do not end with a norm.
    """

    config: TransformerConfig
    cross: bool = False
    final_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T E"],
        context: Context,
        cache: Cache | None = None,
        hidden_states: bool = False,
    ) -> dict[str, Any]:
        """Applies all blocks.

        Args:
          x: input vectors.
          context: inputs that all blocks share.
          cache: key-value caches of all layers; None for none.
          hidden_states: whether to return the outputs of all blocks.

        Returns:
          "hidden": [B, T, D], after the final norm; "cache": the cache with these
          tokens added, or None; "router": router losses [layers, B] by name, see
          `MixtureOfExperts`, empty without experts; and, if requested, "hidden_states":
          [layers + 1, B, T, D], the first block's input and every block's output, the
          last one after the final norm.
        """
        c = self.config
        if self.cross and c.parallel is not None:
            raise UserError(
                f"transformer.parallel = {c.parallel!r}: blocks with cross-attention "
                "have one layer after the other; expected None."
            )
        if x.shape[-1] != c.embed_dim:
            axes = (None, "embed")
            x = Dense(
                c.embed_dim, axes, True, c.init_std, c.compute_dtype, name="project"
            )(x)
        zigzag = self._in_zigzag(x, context, hidden_states)
        key_positions = context.positions
        if zigzag:
            x, context = to_zigzag(x), _to_zigzag(context)
        context = self._with_positions(context, key_positions, cache)
        x = constrain_residual(x)
        y, beside = self._blocks(x, context, cache, hidden_states)
        if self.final_norm and c.norm_position != "post":
            y = c.make_norm("final_norm")(y)
        if zigzag:
            y = from_zigzag(y)
        y = constrain(y, "batch", "length", "act_embed")
        out = {"hidden": y, "cache": beside.cache, "router": beside.router}
        if hidden_states:
            inner = beside.output[:-1]
            out["hidden_states"] = jnp.concatenate([x[None], inner, y[None]])
        return out

    def _in_zigzag(self, x: Array, context: Context, hidden_states: bool) -> bool:
        """Whether to compute in zig-zag order.

        Not where an order is noticed: random keys are drawn by position, and experts
        with a capacity drop the last tokens.

        Raises:
          UserError: the devices of mesh.context do not divide the sequence.
        """
        c, T, devices = self.config, x.shape[1], shards("length")
        if (
            devices == 1
            or self.is_initializing()
            or self.is_mutable_collection(ATTENTION_WEIGHTS)
            or context.mask.query_positions is not None  # with a cache
        ):
            return False
        rates = (c.dropout, c.attention_dropout, c.mlp_dropout)
        dropped = c.experts is not None and c.experts.capacity is not None
        drawn = context.keys is not None and any(rates)
        zigzag = context.mask.causal and not (dropped or drawn or hidden_states)
        parts = devices * (2 if zigzag else 1)
        if T % parts:
            raise UserError(
                f"mesh.context = {devices}: the stack reads sequences of {T}; expected "
                f"a multiple of {parts}"
                + (", two parts for each device." if zigzag else ".")
            )
        return zigzag

    def _blocks(
        self, x: Array, context: Context, cache: Cache | None, keep_outputs: bool
    ) -> tuple[Array, BlockOutputs]:
        c = self.config
        keep_weights = self.is_mutable_collection(ATTENTION_WEIGHTS)
        first = 0 if c.experts is None else c.experts.dense_layers
        if shards("layers") > 1 and not (
            self.is_initializing() or cache is not None or keep_outputs or keep_weights
        ):
            if first:
                raise UserError(
                    f"experts.dense_layers = {first}: a pipeline (mesh.stage) has "
                    "layers of one kind; expected 0."
                )
            return self._pipelined(x, context)
        if not first:
            layers = range(c.num_layers)
            return apply_blocks(c, layers, self.cross, keep_outputs, x, context, cache)
        dense = dataclasses.replace(
            c, experts=None, mlp_dim=c.experts.dense_dim or c.mlp_width
        )
        before = jax.tree.map(lambda leaf: leaf[:first], cache)
        after = jax.tree.map(lambda leaf: leaf[first:], cache)
        one = FirstLayers(dense, first, self.cross, keep_outputs, name=DENSE)
        x, of_dense = one(x, context, before)
        layers = range(first, c.num_layers)
        x, rest = apply_blocks(c, layers, self.cross, keep_outputs, x, context, after)
        joined = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]),
            of_dense._replace(router={}),
            rest._replace(router={}),
        )
        return x, joined._replace(router=rest.router)

    def _pipelined(self, x: Array, context: Context) -> tuple[Array, BlockOutputs]:
        """The blocks as a pipeline over the devices that have the layers."""
        c = self.config
        block = Block(c, self.cross, keep_output=False, parent=None)

        def apply(params, x, index, context):
            y, beside = block.apply({"params": params}, x, (index, None), context)
            return y, beside.router

        if c.remat != "none":
            policy = remat_policy(c.remat, c.remat_save, c.remat_offload)
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=False)
        stages = shards("layers")
        if c.share_layers:
            raise UserError(
                f"mesh.stage = {stages}: with transformer.share_layers there is one "
                "layer to place; expected 1."
            )
        pipeline = Pipeline(
            mesh_axes("layers"),
            stages,
            c.num_layers,
            c.pipeline_rounds,
            c.pipeline_microbatches or stages,
            apply,
        )
        y, router = pipeline(self.variables["params"]["layers"], x, context)
        return y, BlockOutputs(None, router, None)

    def _with_positions(
        self, context: Context, keys: Array, cache: Cache | None
    ) -> Context:
        """The context with the window, position bias and relative vectors set.

        Args:
          context: inputs that all blocks share.
          keys: positions of the keys, int [B or 1, T].
          cache: of the stack; its slots replace `keys`.
        """
        c = self.config
        queries = context.positions
        if cache is not None:
            keys = jnp.arange(cache.self_attention.k.shape[-3])[None]
        if ahead := prefix_length(self.variables.get("params")):
            first = jnp.broadcast_to(jnp.arange(ahead), (len(keys), ahead))
            queries = queries + ahead
            keys = jnp.concatenate([first, keys + ahead], axis=1)
        if (ahead or context.mask.shared) and shards("length") > 1:
            raise UserError(
                f"mesh.context = {shards('length')}: virtual tokens (@prefix(), and "
                "@prompt() with segments) are on every device; expected 1."
            )
        if ahead and isinstance(c.position_bias, Disentangled | RelativeGrid):
            raise UserError(
                f"transformer.position_bias = @{c.position_bias.gin_name}(): it has no "
                "positions for keys before a text, which peft.methods adds by "
                "@prefix(); expected another method."
            )
        bias = relative = positions = None
        by_distance = cache is None and not ahead and self._takes_distances()
        match c.position_bias:
            case Alibi():
                scale = c.attention_scale or c.head_width**-0.5
                factor = scale if c.position_bias.scaled else 1.0
                if by_distance:
                    bias = DistanceBias.alibi(c.num_heads, queries, keys, factor)
                else:
                    bias = alibi(c.num_heads, queries, keys)
                    bias = bias if factor == 1.0 else factor * bias
            case RelativeBuckets() if by_distance:
                causal = context.mask.causal
                positions = DistanceBias(
                    queries, keys, buckets=c.position_bias, causal=causal
                )
            case RelativeBuckets():
                positions = bucketed(
                    c.position_bias, queries, keys, context.mask.causal
                )
            case RelativeGrid():
                positions = on_grid(self._patches(context, c.position_bias))
            case Disentangled():
                relative = self._relative_vectors(c.position_bias, queries, keys)
        if positions is not None and not c.position_bias.per_layer:
            bias = RelativeBias(c.num_heads, c.init_std, name="relative_bias")(
                positions
            )
            positions = None
        angles = None
        if isinstance(c.rotary, PatchRotary):
            angles = c.rotary.tables(c.head_width, self._patches(context, c.rotary))
        return dataclasses.replace(
            context,
            mask=dataclasses.replace(context.mask, window=c.window),
            bias=bias,
            relative=relative,
            relative_positions=positions,
            angles=angles,
        )

    def _takes_distances(self) -> bool:
        """Whether a kernel may compute a bias from positions, without an array."""
        alone = shards("length") == 1 and shards("layers") == 1
        kernel = self.config.attention
        return alone and (
            kernel == "triton" or (kernel == "auto" and platform() == "gpu")
        )

    def _patches(self, context: Context, positions: Any) -> PatchGrid:
        """The grid of patches that positions in two dimensions are of."""
        if context.patches is None:
            raise UserError(
                f"@{positions.gin_name}() is for the patches of whole images, which "
                "only @vit() reads; expected positions in one dimension."
            )
        return context.patches

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


class FirstLayers(nn.Module):
    """The first layers of a stack, of another kind than those that follow.

    Attributes:
      config: of these layers, with the number of layers of the whole stack.
      count: how many there are.
      cross: whether blocks have cross-attention.
      keep_outputs: whether to return the outputs of all blocks.
    """

    config: TransformerConfig
    count: int
    cross: bool
    keep_outputs: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], BlockOutputs]:
        """Applies the layers; see `apply_blocks`."""
        layers = range(self.count)
        keep = self.keep_outputs
        return apply_blocks(self.config, layers, self.cross, keep, x, context, cache)


def apply_blocks(
    config: TransformerConfig,
    layers: range,
    cross: bool,
    keep_outputs: bool,
    x: Float[Array, "B T D"],
    context: Context,
    cache: Cache | None,
) -> tuple[Float[Array, "B T D"], BlockOutputs]:
    """Blocks one after the other, in the module that calls it.

    Args:
      config: of all of them.
      layers: their indices in the stack.
      cross: whether blocks have cross-attention.
      keep_outputs: whether to return the outputs of all blocks.
      x: input of the first.
      context: inputs that all blocks share.
      cache: key-value caches of these layers; None for none.

    Returns:
      The output of the last block, and further outputs with a leading layers axis.
    """
    c, block = config, Block
    if c.remat != "none":
        # XLA cannot undo rematerialization inside a scan, so the barriers that
        # prevent it are needed only for unrolled blocks.
        policy = remat_policy(c.remat, c.remat_save, c.remat_offload)
        block = nn.remat(Block, policy=policy, prevent_cse=not c.scan_layers)
    arguments = (c, cross, keep_outputs)
    if c.scan_layers or c.share_layers:
        own: dict[str, Any] = {
            "variable_axes": {"params": 0, ATTENTION_WEIGHTS: 0},
            "split_rngs": {"params": True},
            "check_constancy_invariants": False,
            "metadata_params": {nn.PARTITION_NAME: SCANNED},
        }
        if c.share_layers:
            own = {
                "variable_broadcast": "params",
                "variable_axes": {ATTENTION_WEIGHTS: 0},
                "split_rngs": {"params": False},
            }
        scanned = nn.scan(
            block,
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=len(layers),
            unroll=c.scan_unroll if c.scan_layers else len(layers),
            **own,
        )(*arguments, name=SHARED if c.share_layers else SCANNED)
        indices = jnp.arange(len(layers))
        if layers.start:
            indices = indices + layers.start
        return scanned(x, (indices, cache), context)
    every = []
    for i, index in enumerate(layers):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], cache)
        one = block(*arguments, name=f"layer_{i}")
        x, beside = one(x, (jnp.int32(index), own), context)
        every.append(beside)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)


def _to_zigzag(context: Context) -> Context:
    """The context of a sequence in zig-zag order."""
    mask, cross_mask = context.mask, context.cross_mask
    return dataclasses.replace(
        context,
        positions=whole_to_zigzag(context.positions),
        mask=dataclasses.replace(
            mask,
            zigzag=True,
            query_segment_ids=whole_to_zigzag(mask.query_segment_ids),
            key_segment_ids=whole_to_zigzag(mask.key_segment_ids),
            padding_mask=whole_to_zigzag(mask.padding_mask),
        ),
        cross_mask=dataclasses.replace(
            cross_mask, query_segment_ids=whole_to_zigzag(cross_mask.query_segment_ids)
        ),
    )


def empty_cache(
    config: TransformerConfig, rows: int, length: int, encoder_length: int | None = None
) -> Cache:
    """An empty cache of a stack.

    Args:
      config: of the stack.
      rows: B.
      length: S, positions per row.
      encoder_length: length of the encoder's output; None without an encoder.
    """
    c = config

    def zeros(length, *shapes):
        every = ((c.num_layers, rows, length, *shape) for shape in shapes)
        return KeyValueCache(*(jnp.zeros(shape, c.compute_dtype) for shape in every))

    heads = (c.kv_heads, c.head_width)
    own = (heads, heads)
    if c.latent is not None:
        own = ((1, c.latent.rank), (1, c.latent.rotary_dim))
    encoded = None if encoder_length is None else zeros(encoder_length, heads, heads)
    return Cache(zeros(length, *own), encoded)


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
