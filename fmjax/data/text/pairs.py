"""The layout of pairs of inputs and targets: one or several in a row."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from fmjax.data.records import Record, Row
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row

# Maximum number of open rows in first-fit packing; more gives less padding and takes
# longer.
_OPEN_ROWS = 256

Tokens = TypeVar("Tokens", np.ndarray, list[int])


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The layout of pairs for an encoder-decoder; see `RowLayout`.

    Attributes:
      length: S, tokens of the encoder's row.
      target_length: T, tokens of the decoder's row.
      packed: whether a row holds several pairs; segment i of the decoder belongs to
        segment i of the encoder.
      eos_id: id of EOS, which truncated texts keep.
    """

    length: int
    target_length: int
    packed: bool
    eos_id: int

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        kind = "packed_pairs" if self.packed else "pairs"
        return f"{kind}{self.length}x{self.target_length}"

    def cache_key(self) -> dict:
        """The settings that the records depend on."""
        return {"name": self.name}

    @property
    def has_text_bytes(self) -> bool:
        """True: every token of a target text is a target exactly once."""
        return True

    def records(
        self, documents: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Record]:
        """Yields records of pairs (inputs int [N], targets int [M]).

        Long texts are truncated; pairs with an empty text are left out.
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
            return (join([pair]) for pair in pairs)
        return _packed(pairs, np.array(limits))

    def row(self, record: Record, rng=None, other=None) -> Row:
        """The row of a record, as in `encoder_decoder_row`; see `RowLayout.row`."""
        del rng, other
        tokens = record["tokens"].astype(np.int32)
        texts = np.split(tokens, np.cumsum(record["lengths"]))[:-1]
        pairs = list(zip(texts[::2], texts[1::2]))
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def check(self, record: Record) -> None:
        """Raises ValueError if the record does not fit the layout."""
        tokens, lengths = record["tokens"], record["lengths"]
        if lengths.sum() != len(tokens) or len(lengths) % 2 or not len(lengths):
            raise ValueError("lengths of a record of pairs do not add up")
        sizes = lengths.reshape(-1, 2).sum(0)
        if sizes[0] > self.length or sizes[1] > self.target_length:
            raise ValueError(f"{sizes} tokens in a record are too many")

    def filled(self, record: Record) -> tuple[int, int]:
        """(tokens of inputs and targets, S + T) of the record's row."""
        return len(record["tokens"]), self.length + self.target_length


def shortened(tokens: Tokens, limit: int, eos_id: int | None) -> Tokens:
    """Truncates tokens to `limit`; if the text ends in EOS, so does the result."""
    if len(tokens) <= limit or tokens[-1] != eos_id:
        return tokens[:limit]
    cut = tokens[:limit].copy()
    cut[-1] = eos_id
    return cut


def _packed(pairs, limits: np.ndarray) -> Iterator[Record]:
    """First-fit packing of pairs with a bounded number of open rows."""
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
                yield join(rows.pop(fullest))
                room = np.delete(room, fullest, axis=0)
            chosen = len(rows)
            rows.append([])
            room = np.concatenate([room, limits[None]])
        rows[chosen].append(pair)
        room[chosen] -= sizes
    yield from map(join, rows)


def join(pairs: list) -> Record:
    """The record of one or several pairs of int arrays."""
    texts = [text for pair in pairs for text in pair]
    lengths = np.array([len(text) for text in texts], np.int32)
    return {"tokens": np.concatenate(texts), "lengths": lengths}
