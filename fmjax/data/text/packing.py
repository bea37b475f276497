"""Layouts of documents in rows of T tokens: cut from one stream, or packed whole.

In every layout but `windows`, which samples, each token of every document is the target
of exactly one row. The first token is predicted from the BOS or EOS before it, if the
vocabulary has one.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from fmjax.data.records import Record, Row
from fmjax.data.text.first_fit import first_fit


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout for next-token prediction; see `RowLayout`.

    Attributes:
      mode: "blocks" (the stream of documents cut every T tokens), "windows" (T tokens
        of the stream from a random start) or "packed" (whole documents in one row).
      length: T, tokens of a row.
      bos_id: id at the start of every document; None if there is none.
      eos_id: id at the end of every document; None if there is none. Without BOS it is
        also the first input.
    """

    mode: Literal["blocks", "windows", "packed"]
    length: int
    bos_id: int | None
    eos_id: int | None

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        return f"{self.mode}{self.length}"

    def cache_key(self) -> dict:
        """The settings that the records depend on: all of them."""
        return dataclasses.asdict(self)

    @property
    def has_text_bytes(self) -> bool:
        """True: every token of the text is a target exactly once."""
        return True

    def records(self, documents: Iterable[np.ndarray]) -> Iterator[Record]:
        """Yields records of documents, which are int [N] with EOS."""
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
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: returns the generator that draws a window's start; mode "windows" only.
          other: not used.

        Returns:
          `tokens`, `targets` int32 [T] and `weights` float32 [T]; in mode "packed" also
          `segment_ids` int32 [T] (1, 2, …; 0 is padding) and `positions` int32 [T].
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
        """Raises ValueError if the record does not fit the layout."""
        tokens = record["tokens"]
        if self.mode == "packed":
            lengths = record["lengths"]
            if lengths.sum() != len(tokens) or (lengths < 2).any():
                raise ValueError("lengths of a packed record do not add up")
            targets, maximum = len(tokens) - len(lengths), self.length
        else:
            targets = len(tokens) - 1
            maximum = 2 * self.length - 1 if self.mode == "windows" else self.length
        if tokens.ndim != 1 or not 0 < targets <= maximum:
            raise ValueError(f"{targets} targets in a record; expected 1 to {maximum}")

    def filled(self, record: Record) -> tuple[int, int]:
        """(targets of weight 1, T) of the record's row."""
        if self.mode == "packed":
            return len(record["tokens"]) - len(record["lengths"]), self.length
        return min(len(record["tokens"]) - 1, self.length), self.length

    def _packed_row(self, tokens: np.ndarray, lengths: np.ndarray) -> Row:
        row = self._zeros(("tokens", "targets", "segment_ids", "positions"))
        position = start = 0
        for segment, length in enumerate(lengths.tolist(), 1):
            end = position + length - 1
            self._place(row, position, tokens[start : start + length])
            row["segment_ids"][position:end] = segment
            row["positions"][position:end] = np.arange(length - 1)
            start, position = start + length, end
        return row

    def _place(self, row: Row, position: int, tokens: np.ndarray) -> None:
        """Writes N tokens into a row as N - 1 inputs and targets."""
        end = position + max(len(tokens) - 1, 0)
        row["tokens"][position:end] = tokens[:-1]
        row["targets"][position:end] = tokens[1:]
        row["weights"][position:end] = 1

    def _zeros(self, names: tuple[str, ...]) -> Row:
        row = {name: np.zeros(self.length, np.int32) for name in names}
        row["weights"] = np.zeros(self.length, np.float32)
        return row


def _each_starting_with(first, documents):
    for document in documents:
        yield document if first is None else np.concatenate([[first], document])


def _first_starting_with(first, documents):
    if first is not None:
        yield np.array([first])
    yield from documents


def cut(stream: Iterable[np.ndarray], size: int, stride: int) -> Iterator[Record]:
    """Cuts the concatenation of arrays into pieces of `size` every `stride` tokens.

    The rest is the last piece. With size = stride + 1 every token but the first is a
    target exactly once. With size = 2 · stride every window of stride + 1 tokens lies
    in exactly one piece.
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
    # Tokens that overlap with the previous piece have been targets. The first piece has
    # no previous one, but if pieces overlap its first token is not a target.
    overlap = min(1, size - stride) if first else size - stride
    if total > overlap:
        yield {"tokens": np.concatenate(kept)}


def _packed(documents: Iterable[np.ndarray], length: int) -> Iterator[Record]:
    # Pieces overlap by one token: a target of one, an input of the next.
    pieces = (
        document[start : start + length + 1]
        for document in documents
        for start in range(0, len(document) - 1, length)
    )
    return map(_join, first_fit(pieces, lambda piece: len(piece) - 1, length))


def _join(pieces: list[np.ndarray]) -> Record:
    lengths = np.array([len(piece) for piece in pieces], np.int32)
    return {"tokens": np.concatenate(pieces), "lengths": lengths}
