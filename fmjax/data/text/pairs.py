"""Pairs of a source and a target text, alone or packed side by side in lockstep."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.text.packing import Record, Row

# Rows that stay open for short pairs; more fills better and searches longer.
_OPEN_ROWS = 256

Tokens = TypeVar("Tokens", np.ndarray, list[int])


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A layout: pairs become rows of an encoder-decoder.

    Attributes:
      length: S, the most tokens of sources in a row.
      target_length: T, the most tokens of targets.
      packed: whether a row holds several pairs, segment i of the targets being that of
        segment i of the sources.
      eos_id: the end of a text, which a text that is cut keeps.
    """

    length: int
    target_length: int
    packed: bool
    eos_id: int

    @property
    def name(self) -> str:
        """Says what the records are, in the name of a cache's folder."""
        kind = "packed_pairs" if self.packed else "pairs"
        return f"{kind}{self.length}x{self.target_length}"

    def cache_key(self) -> dict:
        """What of the layout shapes the records."""
        return {"name": self.name}

    @property
    def has_text_bytes(self) -> bool:
        """Every token of a target text is a target once."""
        return True

    def records(
        self, documents: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Record]:
        """Records of (source, target) int arrays; long ones are cut.

        Pairs with an empty side are left out.
        """
        limits = (self.length, self.target_length)
        pairs = (
            tuple(
                shortened(text, limit, self.eos_id) for text, limit in zip(pair, limits)
            )
            for pair in documents
            if len(pair[0]) and len(pair[1])
        )
        if not self.packed:
            return (_join([pair]) for pair in pairs)
        return _packed(pairs, np.array(limits))

    def row(self, record: Record, rng=None, other=None) -> Row:
        """The row of a record; an empty one gives zeros of weight zero."""
        del rng, other
        tokens = record["tokens"].astype(np.int32)
        texts = np.split(tokens, np.cumsum(record["lengths"]))[:-1]
        pairs = list(zip(texts[::2], texts[1::2]))
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def check(self, record: Record) -> None:
        """Raises ValueError if `row` cannot take the record."""
        tokens, lengths = record["tokens"], record["lengths"]
        if lengths.sum() != len(tokens) or len(lengths) % 2 or not len(lengths):
            raise ValueError("lengths of a record of pairs do not add up")
        sizes = lengths.reshape(-1, 2).sum(0)
        if sizes[0] > self.length or sizes[1] > self.target_length:
            raise ValueError(f"{sizes} tokens in a record are too many")

    def filled(self, record: Record) -> tuple[int, int]:
        """Tokens of a record on both sides, and how many there could be."""
        return len(record["tokens"]), self.length + self.target_length


def shortened(tokens: Tokens, limit: int, eos_id: int | None) -> Tokens:
    """The first `limit` tokens of a text, its EOS in place of the last of them."""
    if len(tokens) <= limit or tokens[-1] != eos_id:
        return tokens[:limit]
    cut = tokens[:limit].copy()
    cut[-1] = eos_id
    return cut


def _packed(pairs, limits: np.ndarray) -> Iterator[Record]:
    """First fit over a bounded number of open rows, both sides at once."""
    rows: list[list] = []
    room = np.zeros((0, 2), np.int64)
    for pair in pairs:
        sizes = np.array([len(text) for text in pair])
        fits = np.flatnonzero((room >= sizes).all(1))
        if fits.size:
            chosen = int(fits[0])
        else:
            if len(rows) == _OPEN_ROWS:
                fullest = int(room.min(1).argmin())
                yield _join(rows.pop(fullest))
                room = np.delete(room, fullest, axis=0)
            chosen = len(rows)
            rows.append([])
            room = np.concatenate([room, limits[None]])
        rows[chosen].append(pair)
        room[chosen] -= sizes
    yield from map(_join, rows)


def _join(pairs: list) -> Record:
    texts = [text for pair in pairs for text in pair]
    lengths = np.array([len(text) for text in texts], np.int32)
    return {"tokens": np.concatenate(texts), "lengths": lengths}
