"""Transformer block: attention and feed-forward layers with residual connections."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.models.layers.attention import Attention, KeyValueCache
from fmjax.models.layers.attention_mask import AttentionMask, padding_mask_of
from fmjax.models.layers.bottleneck import HOULSBY, PFEIFFER, read_bottleneck
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.dropout import Keys, drop_path, dropout, fold_keys
from fmjax.models.layers.feed_forward import FeedForward
from fmjax.models.layers.latent_attention import LatentAttention
from fmjax.models.layers.logical_axes import (
    constant_init,
    constrain,
    constrain_residual,
)
from fmjax.models.layers.mixture_of_experts import MixtureOfExperts, Router
from fmjax.models.layers.multipliers import multiply
from fmjax.models.layers.patch_grid import PatchGrid
from fmjax.models.layers.patch_rotary import PatchRotary
from fmjax.models.layers.relative_bias import RelativeBias, RelativePositions
from fmjax.models.layers.transformer_config import TransformerConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Inputs that all blocks of a stack share.

    Attributes:
      positions: int [B or 1, T], of each token in its document; with a cache, the slots
        to write.
      mask: of self-attention; the stack adds the config's window to it.
      encoder_hidden: [B, S, D], input of cross-attention; None without it, or if its
        keys and values are in the cache.
      cross_mask: of cross-attention.
      keys: one random key per example for dropout; None for no dropout.
      bias: [B or 1, H, T, S], added to scores, or by distance; set by the stack.
      relative: vectors [P, D] and indices [B or 1, T, S] for disentangled attention;
        set by the stack.
      relative_positions: of queries and keys, where each layer has biases of its own;
        set by the stack.
      patches: the grid that the tokens are patches of, for positions in two dimensions;
        None for other tokens. Static.
      angles: sines and cosines of rotary positions in two dimensions, [1, T, 1, r]; set
        by the stack.
    """

    positions: Int[Array, "#B T"]
    mask: AttentionMask
    encoder_hidden: Float[Array, "B source D"] | None = None
    cross_mask: AttentionMask = AttentionMask()
    keys: Keys = None
    bias: Float[Array, "#B H T S"] | DistanceBias | None = None
    relative: tuple[Array, Array] | None = None
    relative_positions: RelativePositions | DistanceBias | None = None
    patches: PatchGrid | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    angles: tuple[Array, Array] | None = None


class Cache(NamedTuple):
    """Key-value caches of a block or, with a leading layers axis, of a stack.

    Attributes:
      self_attention: of earlier tokens.
      cross_attention: of the encoder's output; None in a model without an encoder.
    """

    self_attention: KeyValueCache
    cross_attention: KeyValueCache | None = None


class BlockOutputs(NamedTuple):
    """Further outputs of a block; a stack adds a leading layers axis.

    Attributes:
      cache: the cache with these tokens added; None without a cache.
      router: router losses, see `MixtureOfExperts`; empty without experts.
      output: [B, T, D], the block's output; None unless requested.
    """

    cache: Cache | None
    router: Router
    output: Float[Array, "B T D"] | None


class Block(nn.Module):
    """Transformer block: self-attention, optional cross-attention, feed-forward.

    Attributes:
      config: of the stack.
      cross: whether there is cross-attention.
      keep_output: whether `BlockOutputs` has the output, for the stack to keep.
    """

    config: TransformerConfig
    cross: bool
    keep_output: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer: tuple[Int[Array, ""], Cache | None],
        context: Context,
    ) -> tuple[Float[Array, "B T D"], BlockOutputs]:
        """Applies the block.

        Args:
          x: input.
          layer: index of the layer in the stack, and its cache or None.
          context: inputs that all blocks share.
        """
        index, cache = layer
        keys = fold_keys(context.keys, index)
        own, encoded = (None, None) if cache is None else cache

        parallel = self.config.parallel
        normalized = self._normalized("attention", x, index)
        y, own = self._attention("attention", cross=False)(
            normalized,
            positions=context.positions,
            mask=self._mask_of_layer(context.mask, index),
            bias=self._bias(context),
            relative=context.relative,
            encoder_hidden=None,
            cache=own,
            keys=fold_keys(keys, 0),
            layer=index,
            angles=context.angles,
        )
        y = self._adapted("attention", y)
        attended = y
        if parallel is None:
            x = self._added("attention", x, y, fold_keys(keys, 1), index)

        if self.cross:
            y = self._normalized("cross_attention", x, index)
            y, encoded = self._attention("cross_attention", cross=True)(
                y,
                positions=context.positions,
                mask=context.cross_mask,
                bias=None,
                relative=None,
                encoder_hidden=context.encoder_hidden,
                cache=encoded,
                keys=fold_keys(keys, 3),
            )
            y = self._adapted("cross_attention", y)
            x = self._added("cross_attention", x, y, fold_keys(keys, 4), index)

        y = normalized
        if parallel != "norm":
            y = self._normalized("mlp", x, index)
        y, router = self._feed_forward(y, context.mask, own, fold_keys(keys, 5))
        y = self._adapted("mlp", y)
        if parallel is not None:
            y = attended + y
        x = self._added("mlp", x, y, fold_keys(keys, 2), index)

        cache = None if cache is None else Cache(own, encoded)
        return x, BlockOutputs(cache, router, x if self.keep_output else None)

    def _adapted(self, name: str, y: Array) -> Array:
        """The output of the layer of this name, with Houlsby's bottleneck beside it."""
        more = read_bottleneck(self, name + HOULSBY, y)
        return y if more is None else y + more

    def _normalized(self, name: str, x: Array, index: Array) -> Array:
        """The input of the layer of this name, normalized if the config says so."""
        c = self.config
        if c.norm_position in ("pre", "sandwich"):
            y = c.make_norm(f"{name}_norm")(x)
            bare = name == "attention" and not c.first_norm
            x = jnp.where(index == 0, x, y) if bare else y
        # The layer reads whole rows.
        return constrain(x, "batch", "length", "act_embed")

    def _added(self, name: str, x: Array, y: Array, keys: Keys, index: Array) -> Array:
        """x + y with the config's norms and dropout; y is the named layer's output."""
        c = self.config
        # Products that each device summed in part are added to where they belong.
        y = constrain_residual(y)
        if c.norm_position in ("sandwich", "output"):
            y = c.make_norm(f"{name}_out_norm")(y)
        if c.layer_scale is not None:
            init = constant_init(c.layer_scale, "norm")
            factors = self.param(f"{name}_scale", init, y.shape[-1:])
            y = y * factors.astype(y.dtype)
        y = dropout(y, c.dropout, keys)
        if c.stochastic_depth:
            rate = c.stochastic_depth * (index + 1) / c.num_layers
            y = drop_path(y, rate, fold_keys(keys, 0))
        x = x + multiply(y, c.multipliers.residual)
        post = None
        if c.norm_position == "post":
            post = c.make_norm(f"{name}_norm")
        more = read_bottleneck(self, name + PFEIFFER, x, post)
        x = x if more is None else x + more
        return constrain_residual(x if post is None else post(x))

    def _bias(self, context: Context) -> Float[Array, "#B H T S"] | DistanceBias | None:
        """The position bias: that of all layers, or the layer's own."""
        relative, c = context.relative_positions, self.config
        if relative is None:
            return context.bias
        return RelativeBias(c.num_heads, c.init_std, name="relative_bias")(relative)

    def _attention(self, name: str, cross: bool) -> Attention:
        c = self.config
        kind, own = Attention, {}
        if c.latent is not None and not cross:
            kind, own = LatentAttention, {"latent": c.latent}
        return kind(
            num_heads=c.num_heads,
            num_kv_heads=c.kv_heads,
            head_dim=c.head_width,
            cross=cross,
            qkv_bias=c.has_bias("qkv"),
            bias=c.has_bias("out"),
            rotary=None if isinstance(c.rotary, PatchRotary) else c.rotary,
            qk_norm=c.head_norm,
            clip=c.qkv_clip,
            sinks=c.attention_sinks,
            scale_by_layer=c.scale_by_layer and not cross,
            scale=c.attention_scale,
            multiplier=c.multipliers.attention,
            softcap=c.attention_softcap,
            dropout=c.attention_dropout,
            implementation=c.attention,
            context_attention=c.context_attention,
            block=c.attention_block,
            init_std=c.init_std,
            out_init_std=c.out_init_std,
            dtype=c.compute_dtype,
            quantized=c.quantized,
            key_bias=c.key_bias,
            name=name,
            **own,
        )

    def _mask_of_layer(self, mask: AttentionMask, index: Array) -> AttentionMask:
        """The mask with `window_applies` set for the layer of this index."""
        c = self.config
        if c.global_layers is not None:
            local = [not c.is_global(layer) for layer in range(c.num_layers)]
            return dataclasses.replace(mask, window_applies=jnp.array(local)[index])
        every = c.global_every
        if every is None:
            return mask
        return dataclasses.replace(mask, window_applies=(index + 1) % every != 0)

    def _feed_forward(
        self, x: Array, mask: AttentionMask, cache: KeyValueCache | None, keys: Keys
    ) -> tuple[Array, Router]:
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
        if c.experts is None:
            layer = FeedForward(
                bias=c.has_bias("mlp"),
                dropout=c.mlp_dropout,
                quantized=c.quantized,
                **shared,
            )
            return layer(x, keys), {}
        experts = c.experts
        if cache is not None:
            # The capacity of an expert depends on the length of the whole sequence,
            # which is unknown while it is generated.
            experts = dataclasses.replace(experts, capacity=None)
        return MixtureOfExperts(experts, bias=bool(c.mlp_bias), **shared)(
            x, padding_mask_of(mask.query_segment_ids, mask.padding_mask)
        )
