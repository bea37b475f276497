"""Blockwise attention: loops over blocks of keys, in memory O(T · block).

It runs on any platform. The forward pass is the online softmax of Milakov and
Gimelshein (2018); the backward pass recomputes attention weights, as FlashAttention
does (Dao et al. 2022, algorithm 4).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_mask import AttentionMask

# Keys of a block. Scores of a block are [B, H, T, 512]: large enough for few
# iterations, and several times smaller than the full scores of the long rows that this
# kernel is used for.
BLOCK = 512
_HIDDEN = float(jnp.finfo(jnp.float32).min)  # score of a masked key


def refusal(call: AttentionCall) -> str | None:
    """Why this kernel does not support the call; None if it does."""
    mask = dataclasses.replace(call.mask, shared=0, before=0)
    return dataclasses.replace(call, sinks=None, mask=mask).unusual()


def attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    """The output of attention."""
    q, k, v = _heads_first(call)
    H, block = call.q.shape[2], _even(call.block or BLOCK, k.shape[2])
    sinks = None if call.sinks is None else call.sinks.astype(jnp.float32)
    out = _attention(call.scale * q, k, v, sinks, call.mask, call.softcap, H, block)
    return _heads_last(out, H)


def forward_piece(
    call: AttentionCall,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H T"]]:
    """Attention to some of the keys, see `splash.forward_piece`; float32."""
    B, T, H, _ = call.q.shape
    q, k, v = _heads_first(call)
    block = _even(call.block or BLOCK, k.shape[2])
    out, highest, total = _softmax(q, k, v, None, call.mask, call.softcap, H, block)
    log_sums = (highest + jnp.log(total)).reshape(B, H, T)
    return _heads_last(out, H), log_sums


def backward_piece(
    call: AttentionCall,
    out: Float[Array, "B T H K"],
    log_sums: Float[Array, "B H T"],
    gradient: Float[Array, "B T H K"],
) -> tuple[Array, Array, Array]:
    """The part of some keys in the gradients, see `splash.backward_piece`."""
    H, G = call.q.shape[2], call.k.shape[2]
    q, k, v = _heads_first(call)
    out, gradient = (_grouped(jnp.swapaxes(x, 1, 2), G) for x in (out, gradient))
    log_sums = log_sums.reshape(out.shape[:3])
    residuals = (q, k, v, None, call.mask, out, log_sums, jnp.ones_like(log_sums))
    block = _even(call.block or BLOCK, k.shape[2])
    into_q, into_k, into_v, *_ = _backward(call.softcap, H, block, residuals, gradient)
    return (
        _heads_last(into_q, H),
        jnp.swapaxes(into_k, 1, 2),
        jnp.swapaxes(into_v, 1, 2),
    )


def _even(block: int, keys: int) -> int:
    """The size of blocks of at most `block` keys that leaves the least padding."""
    return -(-keys // -(-keys // block))


def _heads_first(call: AttentionCall) -> tuple[Array, Array, Array]:
    """Queries [B, G, H / G · T, K], keys and values [B, G, S, K]."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (call.q, call.k, call.v))
    return _grouped(q, k.shape[1]), k, v


def _grouped(x: Float[Array, "B H T K"], groups: int) -> Float[Array, "B G R K"]:
    return x.reshape(x.shape[0], groups, -1, x.shape[-1])


def _heads_last(x: Float[Array, "B G R K"], heads: int) -> Float[Array, "B T H K"]:
    return jnp.swapaxes(x.reshape(x.shape[0], heads, -1, x.shape[-1]), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(
    q: Float[Array, "B G R K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    sinks: Float[Array, " H"] | None,
    mask: AttentionMask,
    softcap: float | None,
    heads: int,
    block: int,
) -> Float[Array, "B G R K"]:
    """Attention of scaled queries; each key head has R = H / G · T queries."""
    return _forward(q, k, v, sinks, mask, softcap, heads, block)[0]


def _forward(q, k, v, sinks, mask, softcap, heads, block):
    out, highest, total = _softmax(q, k, v, sinks, mask, softcap, heads, block)
    out = checkpoint_name(out.astype(v.dtype), "attention")
    highest = checkpoint_name(highest, "attention")
    total = checkpoint_name(total, "attention")
    return out, (q, k, v, sinks, mask, out, highest, total)


def _softmax(q, k, v, sinks, mask, softcap, heads, block):
    """The output, and each query's highest score and sum of exp(score - highest)."""
    B, G, R, K = q.shape
    f32 = jnp.float32

    def add(carry, piece):
        highest, total, out = carry
        index, k, v = piece
        visible = _visible(mask, q.shape, heads, index, block)
        scores = _masked(_scores(q, k, softcap), visible, index, keys)
        new = jnp.maximum(highest, scores.max(-1))
        weights = jnp.exp(scores - new[..., None])
        shrink = jnp.exp(highest - new)
        total = total * shrink + weights.sum(-1)
        product = jnp.einsum(
            "bgrs,bgsk->bgrk", weights.astype(v.dtype), v, preferred_element_type=f32
        )
        return (new, total, out * shrink[..., None] + product), None

    keys = k.shape[2]
    pieces = (_block_indices(keys, block, q), _cut(k, block), _cut(v, block))
    start = (
        jnp.full((B, G, R), -jnp.inf),
        jnp.zeros((B, G, R)),
        jnp.zeros((B, G, R, K)),
    )
    if sinks is not None:
        # As if a first block had had a key of this score, and a value of zero.
        start = (_per_query(sinks, q.shape), jnp.ones((B, G, R)), start[2])
    (highest, total, out), _ = jax.lax.scan(add, start, pieces)
    return out / total[..., None], highest, total


def _backward(softcap, heads, block, residuals, gradient):
    q, k, v, sinks, mask, out, highest, total = residuals
    f32 = jnp.float32
    # Row sums of weights times their gradients, computed as output times gradient.
    inner = (out.astype(f32) * gradient.astype(f32)).sum(-1)

    def add(into_q, piece):
        index, k, v = piece
        scores, pull = jax.vjp(lambda q, k: _scores(q, k, softcap), q, k)
        visible = _visible(mask, q.shape, heads, index, block)
        scores = _masked(scores, visible, index, keys)
        weights = jnp.exp(scores - highest[..., None]) / total[..., None]
        into_v = jnp.einsum("bgrs,bgrk->bgsk", weights.astype(v.dtype), gradient)
        into_weights = jnp.einsum(
            "bgrk,bgsk->bgrs", gradient, v, preferred_element_type=f32
        )
        into_scores = weights * (into_weights - inner[..., None])
        if visible is not None:
            # If a query's keys are all masked, its weights are uniform and do not
            # depend on the scores.
            into_scores = jnp.where(visible, into_scores, 0)
        more, into_k = pull(into_scores)
        return into_q + more.astype(f32), (into_k, into_v)

    keys = k.shape[2]
    pieces = (_block_indices(keys, block, q), _cut(k, block), _cut(v, block))
    into_q, (into_k, into_v) = jax.lax.scan(add, jnp.zeros(q.shape, f32), pieces)
    join = functools.partial(_join, keys=keys)
    into_sinks = None
    if sinks is not None:
        weights = jnp.exp(_per_query(sinks, q.shape) - highest) / total
        rows = (-weights * inner).reshape(len(q), len(sinks), -1)
        into_sinks = rows.sum((0, 2))
    return into_q.astype(q.dtype), join(into_k), join(into_v), into_sinks, None


_attention.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scores(q, k, softcap):
    """Scores [B, G, R, s] in float32; the gradient is computed in the inputs' dtype."""
    return _capped(_products(q, k), softcap)


def _products(q, k):
    return jnp.einsum("bgrk,bgsk->bgrs", q, k, preferred_element_type=jnp.float32)


def _capped(scores, softcap):
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _scores_forward(q, k, softcap):
    scores = _capped(_products(q, k), softcap)
    return scores, (q, k, scores)


def _scores_backward(softcap, residuals, gradient):
    q, k, scores = residuals
    if softcap is not None:
        gradient = gradient * (1 - (scores / softcap) ** 2)
    gradient = gradient.astype(q.dtype)
    into_q = jnp.einsum("bgrs,bgsk->bgrk", gradient, k)
    into_k = jnp.einsum("bgrs,bgrk->bgsk", gradient, q)
    return into_q, into_k


_scores.defvjp(_scores_forward, _scores_backward)


def _per_query(
    sinks: Float[Array, " H"], shape: tuple[int, ...]
) -> Float[Array, "B G R"]:
    """The score of each query's head, for queries of this shape [B, G, R, K]."""
    B, G, R, _ = shape
    rows = jnp.repeat(sinks.reshape(G, -1), R * G // len(sinks), axis=1)
    return jnp.broadcast_to(rows, (B, G, R))


def _block_indices(keys, block, q):
    """0, 1, … of the blocks, in a form that depends on the queries.

    In a scan over layers JAX computes what depends on no layer's input once, before the
    scan. That would be the masks of all blocks, which together are the [T, S] array
    that blocks are there to avoid.
    """
    indices = jnp.arange(-(-keys // block))
    return jax.lax.optimization_barrier((indices, q))[0]


def _visible(mask, shape, heads, index, block):
    """The mask of a block's scores, bool [B, G, R, block]; None for no masking."""
    B, G, R, _ = shape
    T, first = G * R // heads, index * block
    array = mask.of_keys(first, block).to_array(T, block, first)
    if array is None:
        return None
    array = jnp.broadcast_to(array[:, None, None], (B, G, heads // G, T, block))
    return array.reshape(B, G, R, block)


def _masked(scores, visible, index, keys):
    """Scores, with `_HIDDEN` for masked keys and -inf for keys past the last one."""
    block = scores.shape[-1]
    if visible is not None:
        scores = jnp.where(visible, scores, _HIDDEN)
    if keys % block:
        exists = index * block + jnp.arange(block) < keys
        scores = jnp.where(exists, scores, -jnp.inf)
    return scores


def _cut(x: Float[Array, "B G S K"], block: int) -> Float[Array, "N B G block K"]:
    B, G, S, K = x.shape
    count = math.ceil(S / block)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, count * block - S), (0, 0)))
    return jnp.moveaxis(x.reshape(B, G, count, block, K), 2, 0)


def _join(pieces: Float[Array, "N B G block K"], keys: int) -> Float[Array, "B G S K"]:
    x = jnp.moveaxis(pieces, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, :keys]
