"""Splash attention, the flash attention of TPUs, in Pallas (Dao et al. 2022).

The kernel is that of `jax.experimental.pallas.ops.tpu.splash_attention`. It is a
program for one device that XLA cannot partition, so it runs within `shard_map` on the
rows and heads of each device. On CPUs it is interpreted, which is slow but gives the
results of a TPU.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.pallas.ops.tpu.splash_attention import (
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_kernels.splash_blocks import block_sizes
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.sharding.platform import device_kind, platform

_NO_SEGMENT = -1  # segment id of masked keys; those of tokens are 0 and up


def refusal(call: AttentionCall) -> str | None:
    """Why splash attention does not support the call; None if it does."""
    (B, T, H, _), (_, S, G, _) = call.q.shape, call.k.shape
    if call.unusual():
        return call.unusual()
    if platform() not in ("tpu", "cpu"):
        return f"the mesh is of {platform()} devices"
    for name, length in (("queries", T), ("keys", S)):
        if length % 128:
            return f"{length} {name} a row are no multiple of 128"
    rows, heads, kv_heads = (_shards(axes) for axes in _axes())
    for name, size, shards in (
        ("rows", B, rows),
        ("query heads", H, heads),
        ("key heads", G, kv_heads),
    ):
        if size % shards:
            return f"{size} {name} cannot be divided among {shards} devices"
    if heads != kv_heads:
        return f"query heads lie on {heads} devices, key heads on {kv_heads}"
    return None


def attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    """The output of attention, without a [T, S] array."""
    mask, (B, T) = call.mask, call.q.shape[:2]
    S = call.k.shape[1]
    segments = _segments(mask, B, T, S)
    rows, heads, kv_heads = _axes()

    def local(q, k, v, segments, window_applies):
        def within(mask: AttentionMask) -> Array:
            kernel = _kernel(mask, q.shape[2], T, S, call.softcap)
            return jax.vmap(kernel)(
                *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), segments
            )

        if window_applies is None or mask.window is None:
            out = within(mask)
        else:
            everywhere = AttentionMask(causal=mask.causal)
            out = jax.lax.cond(
                window_applies, lambda: within(mask), lambda: within(everywhere)
            )
        return jnp.swapaxes(out, 1, 2)

    # The kernel requires keys in the queries' dtype, and does not scale the scores.
    q = call.q * jnp.asarray(call.scale, call.q.dtype)
    arguments = (q, call.k, call.v, segments, mask.window_applies)
    if jax.sharding.get_abstract_mesh().empty:
        return local(*arguments)
    of_queries = PartitionSpec(rows, None, heads, None)
    of_keys = PartitionSpec(rows, None, kv_heads, None)
    of_segments = None if segments is None else PartitionSpec(rows, None)
    return jax.shard_map(
        local,
        in_specs=(of_queries, of_keys, of_keys, of_segments, PartitionSpec()),
        out_specs=of_queries,
        # Pallas calls do not declare over which mesh axes their outputs vary.
        check_vma=False,
    )(*arguments)


def _kernel(
    mask: AttentionMask, heads: int, T: int, S: int, softcap: float | None
) -> Callable[..., Array]:
    """The kernel of one row: (q [H, T, K], k, v [G, S, K], segments) → [H, T, K]."""
    if mask.window is not None:
        back = mask.window - 1
        shape = LocalMask((T, S), (back, 0 if mask.causal else back), 0)
    else:
        shape = CausalMask((T, S)) if mask.causal else FullMask((T, S))
    return make_splash_mha(
        MultiHeadMask([shape] * heads),
        block_sizes=block_sizes(T, S, device_kind()),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=platform() == "cpu",
    )


def _segments(mask: AttentionMask, B: int, T: int, S: int) -> SegmentIds | None:
    """Segments and padding as segment ids [B, T] and [B, S]; None if there are none."""
    q, kv = mask.query_segment_ids, mask.key_segment_ids
    if q is None and mask.padding_mask is None:
        return None
    if q is None:
        q, kv = jnp.zeros((1, T), jnp.int32), jnp.zeros((1, S), jnp.int32)
    if mask.padding_mask is not None:
        kv = jnp.where(mask.padding_mask, kv, _NO_SEGMENT)

    def whole(ids: Int[Array, "#B N"], length: int) -> Int[Array, "B N"]:
        return jnp.broadcast_to(ids.astype(jnp.int32), (B, length))

    return SegmentIds(whole(q, T), whole(kv, S))


def _axes() -> PartitionSpec:
    """The mesh axes of rows, query heads and key heads."""
    names = ("batch", "act_heads", "act_kv_heads")
    # Looked up one at a time: in one lookup no two axes may map to one mesh axis.
    return tuple((nn.logical_to_mesh_axes((name,)) or (None,))[0] for name in names)


def _shards(axes: str | tuple[str, ...] | None) -> int:
    sizes = jax.sharding.get_abstract_mesh().shape
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(sizes[axis] for axis in axes)
