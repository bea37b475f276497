"""Flash attention for GPUs where cuDNN has none: segments, biases, soft-caps, rings.

cuDNN takes segments, padding and biases only as an array [T, S], and no soft-cap. The
programs of `triton_kernels` take the mask as it is, and biases by distance (ALiBi, T5)
as the positions and a few numbers. They give the sums that a ring needs. They
are for one device and run within `shard_map` on its rows and heads, as splash attention
does; on CPUs they are interpreted.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels import placement, triton_kernels
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_kernels.triton_blocks import (
    NO_DISTANCES,
    NO_WINDOW,
    Blocks,
    Distances,
    Range,
    Scores,
    Visible,
    block_ranges,
)
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.distance_bias import bucket_of
from fmjax.models.layers.logical_axes import mesh_axes
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.sharding.platform import platform

_WIDEST = 256
_LEAST = 16  # rows and columns of a product that tensor cores take
_NO_SEGMENT = -1  # segment id of masked keys; those of tokens are 0 and up


def refusal(call: AttentionCall) -> str | None:
    """Why these programs do not support the call; None if they do."""
    if reason := call.unusual(distances=True):
        return reason
    return refused_inputs(call) or placement.refusal(call)


def refused_inputs(call: AttentionCall) -> str | None:
    """Why the mesh's devices do not run them on such inputs; None if they do."""
    on, K = platform(), call.q.shape[-1]
    if on not in ("gpu", "cpu"):
        return f"the mesh is of {on} devices"
    if on == "gpu" and call.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"its inputs are {call.q.dtype}, not bfloat16 or float16"
    if K > _WIDEST:
        return f"heads are {K} wide, more than {_WIDEST}"
    return None


def attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    """The output of attention, without a [T, S] array."""
    mask, bias = call.mask, call.bias

    def local(q, k, v, query_ids, key_ids, padding_mask, applies, bias):
        here = dataclasses.replace(
            mask,
            query_segment_ids=query_ids,
            key_segment_ids=key_ids,
            padding_mask=padding_mask,
            window_applies=applies,
        )
        places, slopes, table = (None, None), None, None
        if bias is not None:
            places, slopes, table = (bias.queries, bias.keys), bias.slopes, bias.table
        visible = _visible(here, len(q))
        return _differentiable(_How.of(call), q, k, v, visible, places, slopes, table)

    rows = (mask.query_segment_ids, mask.key_segment_ids, mask.padding_mask)
    arguments = (call.q, call.k, call.v, *rows, mask.window_applies, bias)
    if jax.sharding.get_abstract_mesh().empty:
        return local(*arguments)
    of_queries, of_keys = placement.of_queries(), placement.of_keys()

    def row_spec(x):
        # An array with one row is that of all.
        one = x is None or len(x) == 1
        return PartitionSpec() if one else placement.of_rows()

    of_bias = None
    if bias is not None:
        heads = mesh_axes("act_heads")
        of_bias = dataclasses.replace(
            bias,
            queries=row_spec(bias.queries),
            keys=row_spec(bias.keys),
            slopes=None if bias.slopes is None else PartitionSpec(heads),
            table=None if bias.table is None else PartitionSpec(None, heads),
        )
    inputs = (of_queries, of_keys, of_keys, *map(row_spec, rows))
    return jax.shard_map(
        local,
        in_specs=(*inputs, PartitionSpec(), of_bias),
        out_specs=of_queries,
        # Pallas calls do not declare over which mesh axes their outputs vary.
        check_vma=False,
    )(*arguments)


def forward_piece(
    call: AttentionCall,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H T"]]:
    """Attention to some of the keys, see `splash.forward_piece`."""
    how, visible = _of_piece(call)
    return _forward_arrays(how, call.q, call.k, call.v, visible)


def backward_piece(
    call: AttentionCall,
    out: Float[Array, "B T H K"],
    log_sums: Float[Array, "B H T"],
    gradient: Float[Array, "B T H K"],
) -> tuple[Array, Array, Array]:
    """The part of some keys in the gradients, see `splash.backward_piece`."""
    how, visible = _of_piece(call)
    arrays = (call.q, call.k, call.v, visible, out, log_sums)
    return _backward_arrays(how, arrays, gradient)[:3]


def ranges(call: AttentionCall, blocks: Blocks) -> tuple[Range, Range]:
    """Which blocks of keys, and of queries, are visited: see `block_ranges`."""
    how, visible = _of_piece(call)
    T, S = call.q.shape[1], call.k.shape[1]
    return block_ranges(_scores(how, blocks, S), blocks, visible, T, S)


@dataclasses.dataclass(frozen=True)
class _How:
    scale: float
    softcap: float | None
    causal: bool
    window: int | None
    buckets: RelativeBuckets | None
    causal_buckets: bool

    @classmethod
    def of(cls, call: AttentionCall) -> "_How":
        mask, bias = call.mask, call.bias
        window = None if mask.window_applies is not None else mask.window
        buckets = (None, False) if bias is None else (bias.buckets, bias.causal)
        return cls(call.scale, call.softcap, mask.causal, window, *buckets)


def _of_piece(call: AttentionCall) -> tuple[_How, Visible]:
    return _How.of(call), _visible(call.mask, len(call.q))


def _visible(mask: AttentionMask, B: int) -> Visible:
    """Segments and padding of all rows, and the window where layers differ."""
    queries, keys = mask.query_segment_ids, mask.key_segment_ids
    window = None
    if mask.window is not None and mask.window_applies is not None:
        limit = jnp.asarray([mask.window], jnp.int32)
        window = jnp.where(mask.window_applies, limit, NO_WINDOW)
    if mask.padding_mask is not None:
        keys = jnp.where(mask.padding_mask, 0 if keys is None else keys, _NO_SEGMENT)
    if keys is None:
        return Visible(window=window)

    def of_all(ids):
        return jnp.broadcast_to(ids.astype(jnp.int32), (B, ids.shape[1]))

    # Without segments all queries are of segment 0; their number is not known here.
    return Visible(None if queries is None else of_all(queries), of_all(keys), window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(how: _How, q, k, v, visible, places, slopes, table) -> Array:
    distances = _distances(how, places, slopes, table)
    return _forward_arrays(how, q, k, v, visible, distances)[0]


def _forward(how, q, k, v, visible, places, slopes, table):
    distances = _distances(how, places, slopes, table)
    out, log_sums = _forward_arrays(how, q, k, v, visible, distances)
    out = checkpoint_name(out, "attention")
    log_sums = checkpoint_name(log_sums, "attention")
    return out, (q, k, v, visible, out, log_sums, places, slopes, table)


def _backward(how, kept, gradient):
    *arrays, places, slopes, table = kept
    distances = _distances(how, places, slopes, table)
    into_q, into_k, into_v, into_table = _backward_arrays(
        how, arrays, gradient, distances
    )
    if table is not None:
        into_table = into_table.T[: len(table)].astype(table.dtype)
    # Slopes are constants.
    return into_q, into_k, into_v, None, None, None, into_table


_differentiable.defvjp(_forward, _backward)


def _distances(how: _How, places, slopes, table) -> Distances:
    """The arrays of a bias by distance."""
    queries, keys = places
    if table is None:
        return Distances(queries, keys, slopes)
    # From there on distances share a bucket.
    farthest = how.buckets.max_distance
    every = jnp.arange(-farthest, farthest + 1)
    buckets = bucket_of(how.buckets, every, how.causal_buckets).astype(jnp.int32)
    values = table.astype(jnp.float32)[buckets].T
    return Distances(queries, keys, None, values, buckets)


def _forward_arrays(how, q, k, v, visible, distances=NO_DISTANCES):
    (_, T, _, K), S = q.shape, k.shape[1]
    blocks = _blocks(triton_kernels.FORWARD, T, S, K, distances)
    arrays = _padded(blocks, q, k, v, visible)
    scores = _scores(how, blocks, S)
    distances = _widened_places(distances, blocks)
    out, log_sums = triton_kernels.forward(scores, blocks, *arrays, distances)
    return out[:, :T, :, :K], log_sums[..., :T]


def _backward_arrays(how, arrays, gradient, distances=NO_DISTANCES):
    """Gradients of q, k, v, and of the numbers of each head and bucket."""
    q, k, v, visible, out, log_sums = arrays
    (_, T, _, K), S = q.shape, k.shape[1]
    inner = (out.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(-1)
    inner = jnp.swapaxes(inner, 1, 2)

    def run(name, program, **options):
        blocks = _blocks(name, T, S, K, distances)
        room = ((0, 0), (0, 0), (0, -T % blocks.q))
        return program(
            *(_scores(how, blocks, S), blocks),
            *_padded(blocks, q, k, v, visible),
            _widened(gradient, blocks.q),
            *(jnp.pad(x, room) for x in (log_sums, inner)),
            _widened_places(distances, blocks),
            **options,
        )

    count = _power_of_two(how.buckets.number) if how.buckets else 0
    into_q, by_block = run(
        triton_kernels.INTO_QUERIES, triton_kernels.into_queries, num_buckets=count
    )
    into_k, into_v = run(triton_kernels.INTO_KEYS, triton_kernels.into_keys)
    into_table = None if by_block is None else by_block.sum((0, 2))
    return (
        into_q[:, :T, :, :K],
        into_k[:, :S, :, :K],
        into_v[:, :S, :, :K],
        into_table,
    )


# By program, for heads of up to 128 and up to 256, what ptxas compiles for an H100
# without spilling registers.
_BLOCKS = {
    triton_kernels.FORWARD: (Blocks(128, 64, 8, 2), Blocks(64, 32, 8, 2)),
    triton_kernels.INTO_QUERIES: (Blocks(64, 64, 4, 2), Blocks(64, 32, 8, 2)),
    triton_kernels.INTO_KEYS: (Blocks(64, 64, 4, 2), Blocks(32, 64, 8, 2)),
}


# The same with a bias by distance, for heads of 65 to 128.
_BIASED_BLOCKS = {
    triton_kernels.INTO_QUERIES: Blocks(64, 32, 4, 2),
    triton_kernels.INTO_KEYS: Blocks(64, 64, 8, 2),
}


def _blocks(program: str, T: int, S: int, K: int, distances: Distances) -> Blocks:
    width = _power_of_two(K)
    blocks = _BLOCKS[program][width > 128]
    if distances.queries is not None and width == 128:
        blocks = _BIASED_BLOCKS.get(program, blocks)
    q, k = min(blocks.q, _power_of_two(T)), min(blocks.k, _power_of_two(S))
    return dataclasses.replace(blocks, q=q, k=k)


def _scores(how: _How, blocks: Blocks, S: int) -> Scores:
    padded = S % blocks.k != 0
    interpret = platform() == "cpu"
    mask = (how.causal, how.window)
    return Scores(how.scale, how.softcap, *mask, S, padded, interpret)


def _power_of_two(n: int) -> int:
    return max(_LEAST, 1 << (n - 1).bit_length())


def _padded(blocks: Blocks, q, k, v, visible: Visible):
    """Arrays with whole blocks of positions and a power of two of widths."""
    T, S = q.shape[1], k.shape[1]
    queries, keys = visible.query_ids, visible.key_ids
    if keys is not None:
        if queries is None:
            queries = jnp.zeros((len(q), T), jnp.int32)
        # An id at the end is repeated, so that ranges of ids stay as they are.
        queries = jnp.pad(queries, ((0, 0), (0, -T % blocks.q)), "edge")
        room = ((0, 0), (0, -S % blocks.k))
        keys = jnp.pad(keys, room, constant_values=_NO_SEGMENT)
    visible = Visible(queries, keys, visible.window)
    q, k, v = _widened(q, blocks.q), _widened(k, blocks.k), _widened(v, blocks.k)
    return q, k, v, visible


def _widened_places(distances: Distances, blocks: Blocks) -> Distances:
    """The positions with whole blocks; what is added is hidden."""

    def widened(x, block):
        return None if x is None else jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)))

    queries = widened(distances.queries, blocks.q)
    keys = widened(distances.keys, blocks.k)
    return dataclasses.replace(distances, queries=queries, keys=keys)


def _widened(x: Array, block: int) -> Array:
    T, K = x.shape[1], x.shape[3]
    room = ((0, 0), (0, -T % block), (0, 0), (0, _power_of_two(K) - K))
    return jnp.pad(x, room)
