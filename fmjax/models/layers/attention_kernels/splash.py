"""Splash attention, the flash attention of TPUs, in Pallas (Dao et al. 2022).

The kernel is that of `jax.experimental.pallas.ops.tpu.splash_attention`. It is a
program for one device that XLA cannot partition, so it runs within `shard_map` on the
rows and heads of each device. On CPUs it is interpreted, which is slow but gives the
results of a TPU.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
    splash_attention_kernel,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from fmjax.models.layers.attention_kernels import placement
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_kernels.splash_blocks import block_sizes
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.lanes import LANES, whole_lanes
from fmjax.sharding.platform import device_kind, platform

# Above this much, the padding costs more than scores in memory.
_MOST_PADDING = 1.5
# In the name of a call in the backward pass, which `fmjax plan` reads.
FIRST_KEY = "first_key_"
_NO_SEGMENT = -1  # segment id of masked keys; those of tokens are 0 and up


def refusal(call: AttentionCall) -> str | None:
    """Why splash attention does not support the call; None if it does."""
    if call.unusual():
        return call.unusual()
    if reason := refused_platform():
        return reason
    for name, x in (("queries", call.q), ("keys", call.k)):
        length, padded = x.shape[1], whole_lanes(x.shape[1])
        if padded > _MOST_PADDING * length:
            return f"{length} {name} a row would have to be padded to {padded}"
    return placement.refusal(call)


def refused_platform() -> str | None:
    """Why the mesh's devices do not run the kernel; None if they do."""
    known = platform() in ("tpu", "cpu")
    return None if known else f"the mesh is of {platform()} devices"


def attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    """The output of attention, without a [T, S] array.

    Rows are padded to multiples of 128.
    """
    T, S = call.q.shape[1], call.k.shape[1]
    if (T, S) != (whole_lanes(T), whole_lanes(S)):
        return _attention(_padded(call))[:, :T]
    return _attention(call)


def _padded(call: AttentionCall) -> AttentionCall:
    """The call with rows of multiples of 128, whose padding no query attends to."""
    mask, T, S = call.mask, call.q.shape[1], call.k.shape[1]

    def pad(x, length):
        if x is None:
            return None
        room = [(0, 0), (0, whole_lanes(length) - length)]
        return jnp.pad(x, room + [(0, 0)] * (x.ndim - 2))

    padding_mask = mask.padding_mask
    if padding_mask is None and S % LANES and not (mask.causal and T == S):
        padding_mask = jnp.ones((1, S), bool)
    mask = dataclasses.replace(
        mask,
        query_segment_ids=pad(mask.query_segment_ids, T),
        key_segment_ids=pad(mask.key_segment_ids, S),
        padding_mask=pad(padding_mask, S),
    )
    q, k, v = pad(call.q, T), pad(call.k, S), pad(call.v, S)
    return dataclasses.replace(call, q=q, k=k, v=v, mask=mask)


def _attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    mask, (B, T) = call.mask, call.q.shape[:2]
    S = call.k.shape[1]
    segments = _segments(mask, B, T, S)

    def local(q, k, v, segments, window_applies):
        def within(mask: AttentionMask) -> Array:
            if mask.window is None:
                how = _How(mask.causal, call.softcap, call.block)
                return _differentiable(how, q, k, v, segments)
            kernel = _kernel(mask, *q.shape[2:], T, S, call.softcap, call.block)
            return _per_row(kernel, q, k, v, segments)

        if window_applies is None or mask.window is None:
            out = within(mask)
        else:
            everywhere = AttentionMask(causal=mask.causal)
            out = jax.lax.cond(
                window_applies, lambda: within(mask), lambda: within(everywhere)
            )
        return out

    # The kernel requires keys in the queries' dtype, and does not scale the scores.
    q = call.q
    if call.scale != 1.0:
        q = q * jnp.asarray(call.scale, q.dtype)
    arguments = (q, call.k, call.v, segments, mask.window_applies)
    if jax.sharding.get_abstract_mesh().empty:
        return local(*arguments)
    of_queries, of_keys = placement.of_queries(), placement.of_keys()
    of_segments = None if segments is None else placement.of_rows()
    return jax.shard_map(
        local,
        in_specs=(of_queries, of_keys, of_keys, of_segments, PartitionSpec()),
        out_specs=of_queries,
        # Pallas calls do not declare over which mesh axes their outputs vary.
        check_vma=False,
    )(*arguments)


def _per_row(kernel: Callable, q, k, v, segments) -> Float[Array, "B T H K"]:
    out = jax.vmap(kernel)(*map(_heads_first, (q, k, v)), segments)
    return jnp.swapaxes(out, 1, 2)


def _heads_first(x: Float[Array, "B T H K"]) -> Float[Array, "B H T K"]:
    return jnp.swapaxes(x, 1, 2)


class _How(NamedTuple):
    causal: bool
    softcap: float | None
    block: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(
    how: _How,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    segments: SegmentIds | None,
) -> Float[Array, "B T H K"]:
    """Attention to all keys of a row, with the gradients of `backward_piece`.

    The kernel's own backward pass writes a gradient of the queries for each block of
    keys and sums the array of these, for which XLA takes several times as long as for
    adding its parts: 2.4 ms a layer of Llama 3 8B at 8192 tokens on a v6e (predicted,
    libtpu 0.0.42.1), of 37 for all.
    """
    T, S = q.shape[1], k.shape[1]
    mask = AttentionMask(how.causal)
    kernel = _kernel(mask, *q.shape[2:], T, S, how.softcap, how.block)
    return _per_row(kernel, q, k, v, segments)


def _forward(how, q, k, v, segments):
    out, log_sums = forward_piece(_piece(how, q, k, v, segments))
    out = checkpoint_name(out, "attention")
    log_sums = checkpoint_name(log_sums, "attention")
    return out, (q, k, v, segments, out, log_sums)


def _backward(how, residuals, gradient):
    *arrays, out, log_sums = residuals
    call = _piece(how, *arrays)
    return *backward_piece(call, out, log_sums, gradient), None


_differentiable.defvjp(_forward, _backward)


def _piece(how: _How, q, k, v, segments) -> AttentionCall:
    of_queries, of_keys = segments or (None, None)
    mask = AttentionMask(
        how.causal, query_segment_ids=of_queries, key_segment_ids=of_keys
    )
    return AttentionCall(q, k, v, mask, None, 1.0, how.softcap, 0.0, None, how.block)


def forward_piece(
    call: AttentionCall,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H T"]]:
    """Attention of this device's queries to some of their keys, within `shard_map`.

    Args:
      call: with scaled queries and a mask without a window.

    Returns:
      The output, and the logarithms of the sums of exp(score) over these keys.
    """
    mask, (B, T, H, K), S = call.mask, call.q.shape, call.k.shape[1]
    options = (call.softcap, call.block)
    kernel = _kernel(mask, H, K, T, S, *options, save_residuals=True)
    arrays = map(_heads_first, (call.q, call.k, call.v))
    out, (log_sums,) = jax.vmap(kernel)(*arrays, _segments(mask, B, T, S))
    return jnp.swapaxes(out, 1, 2), log_sums


def backward_piece(
    call: AttentionCall,
    out: Float[Array, "B T H K"],
    log_sums: Float[Array, "B H T"],
    gradient: Float[Array, "B T H K"],
) -> tuple[Array, Array, Array]:
    """The part of these keys in the gradients of attention to all of them.

    Args:
      call: as in `forward_piece`.
      out: output of attention to all keys.
      log_sums: logarithms of the sums of exp(score) over all keys.
      gradient: of `out`.

    Returns:
      Gradients of the queries, of these keys and of their values.
    """
    mask, (B, T, H, K), S = call.mask, call.q.shape, call.k.shape[1]
    q, k, v, out, gradient = map(_heads_first, (call.q, call.k, call.v, out, gradient))
    segments = _segments(mask, B, T, S)
    blocks = block_sizes(T, S, K, device_kind(), mask.causal, call.block)
    # One call for each block of keys: it then has one gradient of the queries, and
    # these are added up here.
    size = blocks.block_kv_dkv if blocks.use_fused_bwd_kernel else S
    parts = []
    for first in range(0, S, size):
        here = slice(first, first + size)
        kernel = _kernel(
            mask, H, K, T, size, call.softcap, None, blocks=blocks, first_key=first
        )
        of_keys = None
        if segments is not None:
            of_keys = SegmentIds(segments.q, segments.kv[:, here])
        arrays = (q, k[:, :, here], v[:, :, here], of_keys, out, log_sums, gradient)
        with jax.named_scope(f"{FIRST_KEY}{first}"):
            parts.append(jax.vmap(functools.partial(_gradients, kernel))(*arrays))
    into_q, into_k, into_v = zip(*parts)
    into_q = sum(part.astype(jnp.float32) for part in into_q).astype(q.dtype)
    into_k, into_v = (jnp.concatenate(x, axis=2) for x in (into_k, into_v))
    return tuple(jnp.swapaxes(x, 1, 2) for x in (into_q, into_k, into_v))


def _gradients(kernel, q, k, v, segments, out, log_sums, gradient):
    """Of a row's queries, keys and values, heads first."""
    # JAX differentiates the kernel only where it sees all keys; this is what it calls,
    # and takes the sums over all keys as they are.
    residuals = (q, k, v, segments, None, out, log_sums)
    masks = (kernel.dq_mask_info, kernel.dkv_mask_info)
    return splash_attention_kernel._splash_attention_bwd(
        res=residuals + masks, do=gradient, **kernel.kwargs
    )[3:6]


def _kernel(
    mask: AttentionMask,
    heads: int,
    width: int,
    T: int,
    S: int,
    softcap: float | None,
    block: int | None,
    save_residuals: bool = False,
    blocks: BlockSizes | None = None,
    first_key: int = 0,
) -> Callable[..., Array]:
    """The kernel of one row: (q [H, T, K], k, v [G, S, K], segments) → [H, T, K].

    Args:
      mask: without a window if `first_key` is not 0.
      heads: H.
      width: K.
      T: number of queries.
      S: number of keys.
      softcap: of the scores.
      block: the most queries and keys of a block; None for as many as suit the chip.
      save_residuals: whether the logarithms of sums are returned too.
      blocks: None for those of these lengths.
      first_key: place in the row of the first of these keys.
    """
    masked = mask.causal or mask.window is not None
    if blocks is None:
        blocks = block_sizes(T, S, width, device_kind(), masked, block)
    if mask.window is not None:
        back = mask.window - 1
        shape = LocalMask((T, S), (back, 0 if mask.causal else back), 0)
    else:
        causal = CausalMask((T, S), -first_key)
        shape = causal if mask.causal else FullMask((T, S))
    return make_splash_mha(
        MultiHeadMask([shape] * heads),
        block_sizes=blocks,
        save_residuals=save_residuals,
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=None if save_residuals else "attention",
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
