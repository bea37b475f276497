"""Which part of a text is held out as the validation split.

Documents are held out by a hash of their contents, so that equal ones are never on both
sides. Few files are held out in blocks spread over all of them.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

# Held-out documents that are expected at least before chance alone decides which.
_ENOUGH = 30
# Distinct hashes that are kept in memory to count few documents.
_MOST_HASHES = 1_000_000
# Blocks that few files are held out in: at most so many bytes each, at least so many
# of them, and no shorter than this.
_BLOCK_BYTES, _BLOCKS, _LEAST_BLOCK = 1 << 20, 20, 2048
# Of a block, how far its edges may move to the end of a line.
_EDGE_SHARE = 0.25


def hash_threshold(hashes: Iterable[int], fraction: float) -> int:
    """The 64-bit number below which a document's hash holds it out.

    Where there are many documents, that is `fraction` of all numbers, and whether one
    is held out does not depend on the others. Of few it is what holds out that share of
    them, at least one, and not all.

    Args:
      hashes: of the documents, uniform in 64 bits; read until there are enough.
      fraction: of documents to hold out, over 0 and below 1.

    Raises:
      ValueError: there are fewer than two distinct documents.
    """
    most = min(_MOST_HASHES, round(_ENOUGH / min(fraction, 1 - fraction)))
    distinct: set[int] = set()
    for value in hashes:
        distinct.add(value)
        if len(distinct) >= most:
            return round(fraction * 2**64)
    if len(distinct) < 2:
        raise ValueError(f"there are {len(distinct)} distinct documents")
    count = min(max(round(fraction * len(distinct)), 1), len(distinct) - 1)
    return sorted(distinct)[count]


def held_out_files(
    sizes: dict[str, int], fraction: float, seed: int
) -> set[str] | None:
    """Whole files that make up a fraction of the bytes, in the order of a hash.

    Args:
      sizes: bytes by the digest of a file, equal files together.
      fraction: of the bytes to hold out.
      seed: chooses among orders.

    Returns:
      Digests; None where there are too few files for whole ones to be held out.
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
    """Parts of a text that are held out.

    Attributes:
      held_out: begins and ends in bytes, in order, not overlapping.
      between: the same of the rest.
      reach: how far an edge may move to the end of a line.
    """

    held_out: list[tuple[int, int]]
    between: list[tuple[int, int]]
    reach: int


def held_out_blocks(size: int, fraction: float, seed: int) -> Blocks:
    """Blocks that make up a fraction of a text and are spread evenly over it.

    The text is divided into equal stretches, and each has one block at a place that the
    seed draws.

    Args:
      size: bytes of the text.
      fraction: of them to hold out.
      seed: chooses the places.
    """
    total = fraction * size
    block = min(max(total / _BLOCKS, min(total, _LEAST_BLOCK)), _BLOCK_BYTES)
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
