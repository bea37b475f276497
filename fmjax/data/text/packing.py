"""Documents to rows of T tokens: cut from one long stream, or packed whole.

A record is what the cache stores, a row what the model reads. In every layout each
token of every document is the target of exactly one row (`windows`, which samples,
excepted); the first token is predicted from the BOS or EOS put before it, where the
vocabulary has one.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

import numpy as np

Record = dict[str, np.ndarray]
Row = dict[str, np.ndarray]

# Rows that stay open for small documents; more fills better and searches longer.
_OPEN_ROWS = 256


class BadRecord(ValueError):
    """No row can be made of a record."""


class RowLayout(Protocol):
    """From documents to the records that a cache holds, and from those to rows."""

    @property
    def name(self) -> str:
        """Says what the records are, in the name of a cache's folder."""

    def cache_key(self) -> dict:
        """What of the layout shapes the records."""

    @property
    def has_text_bytes(self) -> bool:
        """Whether every token of the text is a target once."""

    def records(self, documents: Iterable) -> Iterator[Record]:
        """Records of documents: int arrays [N], EOS included, pairs, or images."""

    def row(
        self,
        record: Record,
        rng: Callable[[], np.random.Generator] | None = None,
        other: Callable[[np.random.Generator], Record] | None = None,
    ) -> Row:
        """The row of a record; an empty one gives zeros of weight zero.

        Args:
          record: as `records` made it.
          rng: gives the generator of all that is random in the row.
          other: draws another record.

        Raises:
          BadRecord: what is wrong with the record shows only now.
        """

    def check(self, record: Record) -> None:
        """Raises ValueError if `row` cannot take the record."""

    def filled(self, record: Record) -> tuple[int, int]:
        """How much of a row the record fills, and of how much."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How documents become rows of next tokens; see `RowLayout`.

    Attributes:
      mode: "blocks" (the stream of documents cut every T tokens), "windows" (T tokens
        of the stream from a random start) or "packed" (whole documents side by side).
      length: T.
      bos_id: id that starts every document, if any.
      eos_id: id that ends every document, if any; without BOS it also starts one.
    """

    mode: Literal["blocks", "windows", "packed"]
    length: int
    bos_id: int | None
    eos_id: int | None

    @property
    def name(self) -> str:
        """Says what the records are, in the name of a cache's folder."""
        return f"{self.mode}{self.length}"

    def cache_key(self) -> dict:
        """What of the layout shapes the records: all of it."""
        return dataclasses.asdict(self)

    @property
    def has_text_bytes(self) -> bool:
        """Every token of the text is a target once."""
        return True

    def records(self, documents: Iterable[np.ndarray]) -> Iterator[Record]:
        """Records of documents (int arrays [N], EOS included)."""
        if self.mode == "packed":
            first = self.eos_id if self.bos_id is None else self.bos_id
            return _packed(_each_starting_with(first, documents), self.length)
        if self.bos_id is not None:
            stream = _each_starting_with(self.bos_id, documents)
        else:
            stream = _first_starting_with(self.eos_id, documents)
        size = 2 * self.length if self.mode == "windows" else self.length + 1
        return cut(stream, size, self.length)

    def row(
        self,
        record: Record,
        rng: Callable[[], np.random.Generator] | None = None,
        other=None,
    ) -> Row:
        """The row of a record; an empty record gives zeros of weight zero.

        Args:
          record: as `records` made it.
          rng: gives the generator that draws a window's start; mode "windows" only.
          other: not needed; see `corruption.Pieces`.

        Returns:
          `tokens`, `targets` int32 [T], `weights` float32 [T], and when packed
          `segment_ids` (1, 2, … in order; 0 is padding) and `positions` int32 [T].
        """
        del other
        tokens = record["tokens"].astype(np.int32)
        if self.mode == "packed":
            return self._packed_row(tokens, record["lengths"])
        if self.mode == "windows" and len(tokens) > self.length:
            start = int(rng().integers(len(tokens) - self.length))
            tokens = tokens[start : start + self.length + 1]
        row = self._zeros(("tokens", "targets"))
        self._place(row, 0, tokens)
        return row

    def check(self, record: Record) -> None:
        """Raises ValueError if `row` cannot take the record."""
        tokens = record["tokens"]
        if self.mode == "packed":
            lengths = record["lengths"]
            if lengths.sum() != len(tokens) or (lengths < 2).any():
                raise ValueError("lengths of a packed record do not add up")
            targets, most = len(tokens) - len(lengths), self.length
        else:
            targets = len(tokens) - 1
            most = 2 * self.length - 1 if self.mode == "windows" else self.length
        if tokens.ndim != 1 or not 0 < targets <= most:
            raise ValueError(f"{targets} targets in a record; expected 1 to {most}")

    def filled(self, record: Record) -> tuple[int, int]:
        """How many targets of a row of this record count, and how many could."""
        if self.mode == "packed":
            return len(record["tokens"]) - len(record["lengths"]), self.length
        return min(len(record["tokens"]) - 1, self.length), self.length

    def _packed_row(self, tokens: np.ndarray, lengths: np.ndarray) -> Row:
        row = self._zeros(("tokens", "targets", "segment_ids", "positions"))
        place = start = 0
        for segment, length in enumerate(lengths.tolist(), 1):
            self._place(row, place, tokens[start : start + length])
            row["segment_ids"][place : place + length - 1] = segment
            row["positions"][place : place + length - 1] = np.arange(length - 1)
            start, place = start + length, place + length - 1
        return row

    def _place(self, row: Row, place: int, tokens: np.ndarray) -> None:
        """Puts N tokens as N - 1 inputs and targets."""
        count = max(len(tokens) - 1, 0)
        row["tokens"][place : place + count] = tokens[:-1]
        row["targets"][place : place + count] = tokens[1:]
        row["weights"][place : place + count] = 1

    def _zeros(self, names: tuple[str, ...]) -> Row:
        row = {name: np.zeros(self.length, np.int32) for name in names}
        row["weights"] = np.zeros(self.length, np.float32)
        return row


def empty_record() -> Record:
    """A record without tokens: its row is zeros of weight zero."""
    return {name: np.zeros(0, np.int32) for name in ("tokens", "lengths")}


def _each_starting_with(first, documents):
    for document in documents:
        yield document if first is None else np.concatenate([[first], document])


def _first_starting_with(first, documents):
    if first is not None:
        yield np.array([first])
    yield from documents


def cut(stream: Iterable[np.ndarray], size: int, stride: int) -> Iterator[Record]:
    """Pieces of `size` tokens every `stride` of the concatenation, and the rest.

    With size = stride + 1 every token but the first is a target once. With size =
    2 stride every start of a window of stride + 1 lies in exactly one piece.
    """
    kept: list[np.ndarray] = []
    total = 0
    first = True
    for tokens in stream:
        kept.append(tokens)
        total += len(tokens)
        if total < size:
            continue
        tokens = np.concatenate(kept)
        start = 0
        while start + size <= len(tokens):
            yield {"tokens": tokens[start : start + size]}
            start += stride
            first = False
        kept, total = [tokens[start:]], len(tokens) - start
    # What overlaps the piece before has been predicted; the first piece has none, but
    # where pieces overlap its first token is no target.
    overlap = min(1, size - stride) if first else size - stride
    if total > overlap:
        yield {"tokens": np.concatenate(kept)}


def _packed(documents: Iterable[np.ndarray], length: int) -> Iterator[Record]:
    """First fit over a bounded number of open rows."""
    rows: list[list[np.ndarray]] = []
    room = np.zeros(0, np.int64)
    for document in documents:
        # Pieces overlap by the token that is the last target here, first input there.
        for start in range(0, len(document) - 1, length):
            piece = document[start : start + length + 1]
            fits = np.flatnonzero(room >= len(piece) - 1)
            if fits.size:
                chosen = int(fits[0])
            else:
                if len(rows) == _OPEN_ROWS:
                    fullest = int(room.argmin())
                    yield _join(rows.pop(fullest))
                    room = np.delete(room, fullest)
                chosen = len(rows)
                rows.append([])
                room = np.append(room, length)
            rows[chosen].append(piece)
            room[chosen] -= len(piece) - 1
            if room[chosen] == 0:
                yield _join(rows.pop(chosen))
                room = np.delete(room, chosen)
    yield from map(_join, rows)


def _join(pieces: list[np.ndarray]) -> Record:
    lengths = np.array([len(piece) for piece in pieces], np.int32)
    return {"tokens": np.concatenate(pieces), "lengths": lengths}
