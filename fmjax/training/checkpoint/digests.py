"""Digests of a checkpoint's arrays, by xxHash, one for each piece of each array.

The checkpoint format itself does not detect flipped bits. A piece is the part of an
array that one device held when it was saved, since a process may hold no more than
that; `damaged` finds the same pieces again on any mesh.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.experimental import multihost_utils

Span = tuple[tuple[int, int], ...]  # [start, stop) of each axis
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an array.

    Attributes:
      path: of the array in its tree, such as "params/tokens/table".
      dtype: of the array.
      shape: of the whole array.
      span: [start, stop) of the part on each axis.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    span: Span


Digests = dict[Piece, str]


def own_pieces(tree: Any) -> dict[Piece, np.ndarray]:
    """The pieces that this process digests, with their values.

    Each piece belongs to exactly one process: that of the first replica, and for NumPy
    arrays the first process.
    """
    pieces = {}
    for path, leaf in _by_path(tree).items():
        if isinstance(leaf, np.ndarray):
            if jax.process_index() == 0:
                pieces[_piece(path, leaf, (slice(None),) * leaf.ndim)] = leaf
            continue
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                piece = _piece(path, leaf, shard.index)
                pieces[piece] = np.asarray(shard.data)
    return pieces


def digest(values: np.ndarray) -> str:
    """Hexadecimal 64-bit XXH3 of an array's bytes in row-major order."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return xxhash.xxh3_64_hexdigest(flat.view(np.uint8))


def sealed(value: Any) -> dict[str, Any]:
    """A JSON value together with its digest; read by `opened`."""
    # Converted by JSON first, as it will be read: tuples become lists, keys strings.
    value = json.loads(json.dumps(value))
    return {"value": value, "digest": _json_digest(value)}


def opened(seal: dict[str, Any]) -> Any:
    """The value that `sealed` was given; raises ValueError if its digest differs."""
    if seal["digest"] != _json_digest(seal["value"]):
        raise ValueError("not what was saved")
    return seal["value"]


def damaged(tree: Any, digests: Digests) -> list[str]:
    """Paths of the arrays of a tree that differ from their digests.

    Every process of a run must call it with the digests of all processes; each checks
    the pieces that it holds, and all get the same result. An array without digests, or
    whose pieces do not cover it, counts as damaged. Digests of arrays that are not in
    the tree are ignored.

    Args:
      tree: of arrays, on any mesh, in the dtypes that they were saved in.
      digests: from the checkpoint.
    """
    by_path: dict[str, list[Piece]] = {}
    for piece in digests:
        by_path.setdefault(piece.path, []).append(piece)
    leaves = _by_path(tree)
    compared = []
    # xxHash releases Python's global interpreter lock, so threads run in parallel.
    with ThreadPoolExecutor(_THREADS) as threads:
        for path, leaf in leaves.items():
            pieces = sorted(by_path.get(path, ()), key=lambda piece: piece.span)
            whole = sum(map(_size, pieces)) == leaf.size and all(
                (p.shape, p.dtype) == (leaf.shape, str(leaf.dtype)) for p in pieces
            )
            held = _held(leaf, pieces) if whole else ()
            found = [(piece, threads.submit(digest, part)) for piece, part in held]
            compared.append((whole, found))
    bad = [
        not whole or any(now.result() != digests[piece] for piece, now in found)
        for whole, found in compared
    ]
    if jax.process_count() > 1:
        bad = multihost_utils.process_allgather(np.array(bad, np.int32)).max(0)
    return [path for path, is_bad in zip(leaves, bad) if is_bad]


def _held(leaf: jax.Array, pieces: list[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
    """The pieces that this process is to check, with their values."""
    if leaf.is_fully_addressable:
        values = np.asarray(leaf)
        for piece in pieces:
            yield piece, values[_slices(piece.span)]
        return
    spans = {
        device: _span(leaf.shape, index)
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items()
    }
    here = {_span(leaf.shape, s.index): s.data for s in leaf.addressable_shards}
    for piece in pieces:
        around = [span for span in spans.values() if _contains(span, piece.span)]
        if not around:
            # On this mesh no device holds the whole piece. It is gathered, in which
            # every process must take part, one piece at a time.
            yield piece, np.asarray(_collected(leaf, piece.span))
        elif around[0] in here:
            values = np.asarray(here[around[0]])
            start = [first for first, _ in around[0]]
            moved = tuple((a - o, b - o) for (a, b), o in zip(piece.span, start))
            yield piece, values[_slices(moved)]


def _collected(leaf: jax.Array, span: Span) -> jax.Array:
    mesh = leaf.sharding.mesh
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    take = jax.jit(jax.lax.dynamic_slice, static_argnums=2, out_shardings=everywhere)
    starts = [jnp.int32(start) for start, _ in span]
    sizes = tuple(stop - start for start, stop in span)
    return take(leaf, starts, sizes).addressable_data(0)


def _by_path(tree: Any) -> dict[str, jax.Array | np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _piece(path: str, leaf: jax.Array | np.ndarray, index: tuple[slice, ...]) -> Piece:
    return Piece(path, str(leaf.dtype), leaf.shape, _span(leaf.shape, index))


def _span(shape: tuple[int, ...], index: tuple[slice, ...]) -> Span:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape))


def _slices(span: Span) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in span)


def _contains(outer: Span, inner: Span) -> bool:
    return all(a <= c and d <= b for (a, b), (c, d) in zip(outer, inner))


def _size(piece: Piece) -> int:
    return int(np.prod([stop - start for start, stop in piece.span], dtype=np.int64))


def _json_digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


def as_json(digests: Mapping[Piece, str]) -> list:
    """A JSON value that `from_json` reads."""
    return [[*dataclasses.astuple(piece), value] for piece, value in digests.items()]


def from_json(value: list) -> Digests:
    """The digests that `as_json` wrote; raises ValueError or TypeError otherwise."""
    return {
        Piece(path, dtype, tuple(shape), tuple((a, b) for a, b in span)): text
        for path, dtype, shape, span, text in value
    }
