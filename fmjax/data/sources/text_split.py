"""Choosing the part of a text that is held out as the validation split.

Documents are held out by a hash of their content, so that equal ones are in the same
split. If there are only few files, blocks spread over all of them are held out.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import xxhash

from fmjax.errors import UserError, require, suggest

# If fewer held-out documents than this are expected, an exact number is held out.
_MIN_EXPECTED = 30
# Maximum number of distinct hashes that are kept in memory for this.
_MAX_HASHES = 1_000_000
# Blocks: maximum bytes, minimum number, and minimum bytes.
_BLOCK_BYTES, _BLOCKS, _MIN_BLOCK_BYTES = 1 << 20, 20, 2048
# How far the ends of a block may move to a line end, as a share of its length.
_EDGE_SHARE = 0.25


def check_hold_out(source: Any, splits: tuple[str, ...]) -> None:
    """Checks the fields of a source that say what is held out.

    Args:
      source: a configurable with split, split_seed, validation_files and
        validation_fraction.
      splits: values that split may have.

    Raises:
      UserError: one of them is out of range, or files and a fraction are both bound.
    """
    name = source.gin_name
    if source.split not in splits:
        raise UserError(
            f"{name}.split = {source.split!r}: expected one of {splits}."
            + suggest(source.split, splits)
        )
    seed_valid = 0 <= source.split_seed < 2**63
    require(source, "split_seed", seed_valid, "0 <= seed < 2**63")
    fraction = source.validation_fraction
    if fraction is not None and source.validation_files is not None:
        raise UserError(
            f"{name}.validation_files and {name}.validation_fraction are both bound; "
            "expected at most one of them."
        )
    fraction_valid = fraction is None or 0 <= fraction < 1
    require(source, "validation_fraction", fraction_valid, "0 <= fraction < 1")


def hash_threshold(hashes: Iterable[int], fraction: float) -> int:
    """The threshold below which a document's 64-bit hash holds it out.

    With many documents the threshold is `fraction` · 2^64, so that a document is held
    out independently of the others. With few documents it holds out exactly that share
    of them, but at least one and not all.

    Args:
      hashes: hashes of the documents, uniform in 64 bits; read only as far as needed.
      fraction: share of documents to hold out, more than 0 and less than 1.

    Raises:
      ValueError: there are fewer than two distinct documents.
    """
    enough = min(_MAX_HASHES, round(_MIN_EXPECTED / min(fraction, 1 - fraction)))
    distinct: set[int] = set()
    for value in hashes:
        distinct.add(value)
        if len(distinct) >= enough:
            return round(fraction * 2**64)
    if len(distinct) < 2:
        raise ValueError(f"there are {len(distinct)} distinct documents")
    count = min(max(round(fraction * len(distinct)), 1), len(distinct) - 1)
    return sorted(distinct)[count]


def held_out_files(
    sizes: dict[str, int], fraction: float, seed: int
) -> set[str] | None:
    """Chooses whole files to hold out, by a hash, up to a fraction of the bytes.

    Args:
      sizes: maps the digest of a file to its bytes (the sum for equal files).
      fraction: share of the bytes to hold out.
      seed: seed of the hash.

    Returns:
      Digests of the held-out files; None if there are too few files.
    """
    if len(sizes) * min(fraction, 1 - fraction) < 2:
        return None
    budget = fraction * sum(sizes.values())
    found = set()
    for digest in sorted(sizes, key=lambda digest: _hash(digest, seed)):
        if sizes[digest] <= budget:
            found.add(digest)
            budget -= sizes[digest]
    return found


class Blocks(NamedTuple):
    """A split of a text into held-out blocks and the rest.

    Attributes:
      held_out: (start, stop) of the held-out blocks in bytes, in order.
      between: (start, stop) of the rest.
      reach: how far the end of a block may move to a line end, in bytes.
    """

    held_out: list[tuple[int, int]]
    between: list[tuple[int, int]]
    reach: int


def held_out_blocks(size: int, fraction: float, seed: int) -> Blocks:
    """Chooses blocks to hold out, spread evenly over a text.

    The text is divided into equal parts, and one block is held out at a random place in
    each.

    Args:
      size: bytes of the text.
      fraction: share of the bytes to hold out.
      seed: seed of the places.
    """
    total = fraction * size
    block = min(max(total / _BLOCKS, min(total, _MIN_BLOCK_BYTES)), _BLOCK_BYTES)
    count = max(1, math.ceil(total / max(block, 1) - 1e-6))
    stretch, width = size / count, total / count
    blocks = []
    for number in range(count):
        draw = _hash(f"{size} {number}", seed) / 2**64
        begin = round(number * stretch + draw * (stretch - width))
        blocks.append((begin, round(begin + width)))
    edges = [0, *itertools.chain.from_iterable(blocks), size]
    between = [(a, b) for a, b in zip(edges[::2], edges[1::2]) if a < b]
    return Blocks(blocks, between, int(width * _EDGE_SHARE))


def _hash(text: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(), seed)
