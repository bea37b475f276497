"""Flash attention for GPUs as Pallas programs, which Triton compiles.

The forward pass is the online softmax of Milakov and Gimelshein (2018). The backward
pass is algorithm 4 of FlashAttention (Dao et al. 2022), in two programs, as in
FlashAttention-2 (Dao 2023): one goes through the keys of each block of queries, the
other through the queries of each block of keys, so that none adds to what another
writes. Blocks of the scores that the mask hides whole are left out: `block_ranges` says
which remain.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels.triton_blocks import (
    HIDDEN,
    NO_DISTANCES,
    Blocks,
    Distances,
    Scores,
    Specs,
    Visible,
    block_ranges,
)

# Names of the programs, which end in what `fmjax plan` has to know of the mask.
FORWARD, INTO_QUERIES, INTO_KEYS = (
    f"flash_attention_{name}" for name in ("forward", "into_queries", "into_keys")
)


def forward(
    how: Scores,
    blocks: Blocks,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    visible: Visible,
    distances: Distances = NO_DISTANCES,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H T"]]:
    """Attention, and the logarithms of the sums of exp(score); float32 the latter.

    T and S are multiples of the blocks', K is a power of two, and G divides H. A query
    without keys has the output 0 and the logarithm `HIDDEN`.
    """
    B, T, H, K = q.shape
    heads_of_key = H // k.shape[2]
    first, last = block_ranges(how, blocks, visible, T, k.shape[1])[0]
    specs = Specs(blocks, heads_of_key, of_queries=True)
    return pl.pallas_call(
        functools.partial(_forward, how, blocks),
        name=how.name(FORWARD),
        grid=(T // blocks.q, H, B),
        in_specs=[
            specs.range(first),
            specs.range(last),
            specs.query_block(K),
            specs.all_keys(k),
            specs.all_keys(v),
            *specs.visible(visible),
            *specs.distances(distances),
        ],
        out_specs=[specs.query_block(K), specs.sums_block()],
        out_shape=[q, jax.ShapeDtypeStruct((B, H, T), jnp.float32)],
        compiler_params=_compiled(blocks),
        interpret=how.interpret,
    )(first, last, q, k, v, *visible.arrays, *distances.arrays)


def into_queries(
    how: Scores,
    blocks: Blocks,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    visible: Visible,
    gradient: Float[Array, "B T H K"],
    log_sums: Float[Array, "B H T"],
    inner: Float[Array, "B H T"],
    distances: Distances = NO_DISTANCES,
    num_buckets: int = 0,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H blocks buckets"] | None]:
    """Gradient of the queries, and of the bias of each bucket by block of queries.

    Args:
      how: as in `forward`, as are blocks, q, k, v and visible.
      blocks: sizes.
      q: queries.
      k: keys.
      v: values.
      visible: of the mask.
      gradient: of the output.
      log_sums: logarithms of the sums of exp(score).
      inner: products of each query's output and its gradient.
      distances: as in `forward`.
      num_buckets: of the bias, a power of two; 0 for no gradient of a bias.
    """
    B, T, H, K = q.shape
    first, last = block_ranges(how, blocks, visible, T, k.shape[1])[0]
    specs = Specs(blocks, H // k.shape[2], of_queries=True)
    out_specs, out_shape = [specs.query_block(K)], [q]
    if num_buckets:
        shape = (B, H, T // blocks.q, num_buckets)
        out_specs.append(specs.buckets_block(num_buckets))
        out_shape.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    into_q, *into_bias = pl.pallas_call(
        functools.partial(_into_queries, how, blocks),
        name=how.name(INTO_QUERIES),
        grid=(T // blocks.q, H, B),
        in_specs=[
            specs.range(first),
            specs.range(last),
            specs.query_block(K),
            specs.all_keys(k),
            specs.all_keys(v),
            *specs.visible(visible),
            *specs.distances(distances),
            specs.query_block(K),
            specs.sums_block(),
            specs.sums_block(),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=_compiled(blocks),
        interpret=how.interpret,
    )(
        *(first, last, q, k, v),
        *visible.arrays,
        *distances.arrays,
        *(gradient, log_sums, inner),
    )
    return into_q, (into_bias[0] if into_bias else None)


def into_keys(
    how: Scores,
    blocks: Blocks,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    visible: Visible,
    gradient: Float[Array, "B T H K"],
    log_sums: Float[Array, "B H T"],
    inner: Float[Array, "B H T"],
    distances: Distances = NO_DISTANCES,
) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]:
    """Gradients of the keys and of the values; arguments as of `into_queries`."""
    B, S, G, K = k.shape
    T, H = q.shape[1:3]
    first, last = block_ranges(how, blocks, visible, T, S)[1]
    specs = Specs(blocks, H // G, of_queries=False)
    return pl.pallas_call(
        functools.partial(_into_keys, how, blocks),
        name=how.name(INTO_KEYS),
        grid=(S // blocks.k, G, B),
        in_specs=[
            specs.range(first),
            specs.range(last),
            specs.all_queries(q),
            specs.key_block(K),
            specs.key_block(K),
            *specs.visible(visible),
            *specs.distances(distances),
            specs.all_queries(q),
            specs.all_sums(T),
            specs.all_sums(T),
        ],
        out_specs=[specs.key_block(K)] * 2,
        out_shape=[k, v],
        compiler_params=_compiled(blocks),
        interpret=how.interpret,
    )(
        *(first, last, q, k, v),
        *visible.arrays,
        *distances.arrays,
        *(gradient, log_sums, inner),
    )


def _compiled(blocks: Blocks) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)


def _forward(
    how,
    blocks,
    first_ref,
    last_ref,
    q_ref,
    k_ref,
    v_ref,
    query_ids_ref,
    key_ids_ref,
    window_ref,
    query_positions_ref,
    key_positions_ref,
    slopes_ref,
    values_ref,
    buckets_ref,
    out_ref,
    log_sums_ref,
):
    del buckets_ref
    q, query_positions = q_ref[...], _loaded(query_positions_ref)
    seen_of = _keys_seen(how, blocks, query_ids_ref, key_ids_ref, window_ref)

    def add(j, carry):
        highest, total, out = carry
        here = pl.ds(j * blocks.k, blocks.k)
        seen = seen_of(j)
        scores, _ = _scores(how, q, k_ref[here, :])
        if query_positions is not None:
            distance = key_positions_ref[here][None] - query_positions[:, None]
            scores += _bias(distance, slopes_ref, values_ref)
        scores = _where(seen, scores, HIDDEN)
        new = jnp.maximum(highest, scores.max(1))
        weights = _where(seen, jnp.exp(scores - new[:, None]), 0.0)
        shrink = jnp.exp(highest - new)
        v = v_ref[here, :]
        out = out * shrink[:, None] + _dot(weights.astype(v.dtype), v)
        return new, total * shrink + weights.sum(1), out

    start = (
        jnp.full(blocks.q, HIDDEN, jnp.float32),
        jnp.zeros(blocks.q, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    highest, total, out = jax.lax.fori_loop(first_ref[...], last_ref[...], add, start)
    sees = total > 0
    total = jnp.where(sees, total, 1.0)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    log_sums_ref[...] = jnp.where(sees, highest + jnp.log(total), HIDDEN)


def _into_queries(
    how,
    blocks,
    first_ref,
    last_ref,
    q_ref,
    k_ref,
    v_ref,
    query_ids_ref,
    key_ids_ref,
    window_ref,
    query_positions_ref,
    key_positions_ref,
    slopes_ref,
    values_ref,
    buckets_ref,
    gradient_ref,
    log_sums_ref,
    inner_ref,
    into_q_ref,
    into_bias_ref=None,
):
    q, gradient = q_ref[...], gradient_ref[...]
    query_positions = _loaded(query_positions_ref)
    seen_of = _keys_seen(how, blocks, query_ids_ref, key_ids_ref, window_ref)
    log_sums, inner = log_sums_ref[...], inner_ref[...]

    def add(j, carry):
        into_q, into_bias = carry
        here = pl.ds(j * blocks.k, blocks.k)
        k, seen, distance = k_ref[here, :], seen_of(j), None
        scores, slope = _scores(how, q, k)
        if query_positions is not None:
            distance = key_positions_ref[here][None] - query_positions[:, None]
            scores += _bias(distance, slopes_ref, values_ref)
        weights = _where(seen, jnp.exp(scores - log_sums[:, None]), 0.0)
        into_weights = _dot(gradient, v_ref[here, :].T)
        into_scores = weights * (into_weights - inner[:, None])
        if into_bias is not None:
            bucket = buckets_ref[_place(distance, buckets_ref)]
            into_bias += _by_bucket(into_scores, bucket, len(into_bias))
        into_scores *= slope
        return into_q + _dot(into_scores.astype(k.dtype), k), into_bias

    into_q, into_bias = jnp.zeros(q.shape, jnp.float32), None
    if into_bias_ref is not None:
        into_bias = jnp.zeros(into_bias_ref.shape, jnp.float32)
    into_q, into_bias = jax.lax.fori_loop(
        first_ref[...], last_ref[...], add, (into_q, into_bias)
    )
    into_q_ref[...] = (how.scale * into_q).astype(into_q_ref.dtype)
    if into_bias_ref is not None:
        into_bias_ref[...] = into_bias


def _into_keys(
    how,
    blocks,
    first_ref,
    last_ref,
    q_ref,
    k_ref,
    v_ref,
    query_ids_ref,
    key_ids_ref,
    window_ref,
    query_positions_ref,
    key_positions_ref,
    slopes_ref,
    values_ref,
    buckets_ref,
    gradient_ref,
    log_sums_ref,
    inner_ref,
    into_k_ref,
    into_v_ref,
):
    del buckets_ref
    # Blocks of scores are [keys, queries] here, which is how the products need them.
    k, v = k_ref[...], v_ref[...]
    key = (pl.program_id(0) * blocks.k + jnp.arange(blocks.k))[:, None]
    key_ids, window = _loaded(key_ids_ref), _loaded(window_ref)
    key_positions = _loaded(key_positions_ref)
    first, count = first_ref[...], last_ref[...] - first_ref[...]

    def add(n, carry):
        into_k, into_v = carry
        # All query heads that this key head serves, one after the other.
        head, start = n // count, (first + n % count) * blocks.q
        here = pl.ds(start, blocks.q)
        q, gradient = q_ref[here, head, :], gradient_ref[here, head, :]
        query, query_ids = start + jnp.arange(blocks.q), _loaded(query_ids_ref, here)
        ids = (None, None) if key_ids is None else (query_ids[None], key_ids[:, None])
        seen = _seen(how, query[None], key, *ids, window)
        scores, slope = _scores(how, k, q)
        if key_positions is not None:
            distance = key_positions[:, None] - query_positions_ref[here][None]
            scores += _bias(distance, slopes_ref, values_ref, head)
        log_sums, inner = log_sums_ref[head, here], inner_ref[head, here]
        weights = _where(seen, jnp.exp(scores - log_sums[None]), 0.0)
        into_v += _dot(weights.astype(gradient.dtype), gradient)
        into_weights = _dot(v, gradient.T)
        into_scores = weights * (into_weights - inner[None]) * slope
        return into_k + _dot(into_scores.astype(q.dtype), q), into_v

    zero = jnp.zeros(k.shape, jnp.float32)
    into_k, into_v = jax.lax.fori_loop(0, count * q_ref.shape[1], add, (zero, zero))
    into_k_ref[...] = (how.scale * into_k).astype(into_k_ref.dtype)
    into_v_ref[...] = into_v.astype(into_v_ref.dtype)


def _keys_seen(how, blocks, query_ids_ref, key_ids_ref, window_ref) -> Callable:
    """Block of keys → which scores [q, k] of this block of queries exist."""
    query = (pl.program_id(0) * blocks.q + jnp.arange(blocks.q))[:, None]
    query_ids, window = _loaded(query_ids_ref), _loaded(window_ref)

    def seen_of(j):
        key = j * blocks.k + jnp.arange(blocks.k)
        if query_ids is None:
            return _seen(how, query, key[None], None, None, window)
        key_ids = key_ids_ref[pl.ds(j * blocks.k, blocks.k)]
        return _seen(how, query, key[None], query_ids[:, None], key_ids[None], window)

    return seen_of


def _loaded(ref, here=...):
    return None if ref is None else ref[here]


def _dot(a, b):
    # Float32, of tests, without rounding to TF32.
    precision = "highest" if a.dtype == jnp.float32 else None
    return pl.dot(a, b, precision=precision)


def _scores(how: Scores, a, b):
    """Scores of the rows of `a` and of `b`, and their derivatives by the products."""
    scores = how.scale * _dot(a, b.T)
    if how.softcap is None:
        return scores, 1.0
    part = jnp.tanh(scores / how.softcap)
    return how.softcap * part, 1 - part * part


def _bias(distance, slopes_ref, values_ref, *head):
    """The bias of keys at these distances from queries; `head` of several, if there."""
    if slopes_ref is not None:
        size = jnp.abs(distance).astype(jnp.float32)
        return -slopes_ref[head or ...] * size
    return values_ref[(*head, _place(distance, values_ref))]


def _place(distance, ref):
    """Where in an array over distances, whose middle is 0, each of them is."""
    farthest = ref.shape[-1] // 2
    return jnp.clip(distance, -farthest, farthest) + farthest


def _by_bucket(x, bucket, count):
    """The sums of x over each bucket, [count]."""
    every = jnp.arange(count)

    def add(b, sums):
        here = jnp.where(bucket == b, x, 0.0).sum(1).sum(0)
        return sums + jnp.where(every == b, here, 0.0)

    # Most blocks are far from their queries and have one bucket or two.
    first, last = bucket.min(1).min(0), bucket.max(1).max(0)
    zero = jnp.zeros(count, jnp.float32)
    return jax.lax.fori_loop(first, last + 1, add, zero)


def _seen(how: Scores, query, key, query_ids, key_ids, window):
    """Which scores of a block exist; None for all.

    Args:
      how: of the scores.
      query: indices of the queries, [q, 1] or [1, q].
      key: indices of the keys, [1, k] or [k, 1].
      query_ids: of the same form, or None.
      key_ids: of the same form, or None.
      window: where layers differ, or None.
    """
    conditions = []
    if how.keys_are_padded:
        shape = jnp.broadcast_shapes(query.shape, key.shape)
        conditions.append(jnp.broadcast_to(key < how.keys, shape))
    if how.causal:
        conditions.append(query >= key)
    for limit in (how.window, window):
        if limit is not None:
            conditions.append(jnp.abs(query - key) < limit)
    if query_ids is not None:
        conditions.append(query_ids == key_ids)
    return functools.reduce(jnp.logical_and, conditions) if conditions else None


def _where(seen, x, other):
    return x if seen is None else jnp.where(seen, x, other)
