"""The interface of corruptions, and the layout that applies them to pieces of text.

Every corruption has a file of its own in this folder (masking: `text/masking.py`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from fmjax.data.records import Record, Row
from fmjax.data.text.packing import cut
from fmjax.data.tokenizers.tokenizers import Tokenizer

Rng = np.random.Generator

# Draws of another piece of text before the same piece is used.
_TRIES = 10


class Corruption(Protocol):
    """A configurable that defines how text is corrupted."""

    def raw_length(self, length: int) -> int:
        """The maximum number of tokens of text for rows of `length` tokens.

        Raises:
          UserError: `length` is too small.
        """

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "Corrupt":
        """The corruption for a given tokenizer and row length.

        Args:
          tokenizer: the tokenizer of the text.
          length: tokens of a row; for an encoder-decoder, of the encoder's row.
          raw_length: maximum number of tokens of text.

        Raises:
          UserError: the vocabulary lacks a special token.
        """


class Corrupt(Protocol):
    """A corruption with a known tokenizer and row length.

    Attributes:
      raw_length: maximum number of tokens of text in a row.
    """

    raw_length: int

    def row(self, tokens: np.ndarray, rng: Rng, other: Callable[[], np.ndarray]) -> Row:
        """The row of a piece of text; empty text gives zeros of weight 0.

        Args:
          tokens: int32 [n], n <= raw_length, the tokens of the piece.
          rng: the generator of all random numbers.
          other: returns the tokens of another piece, drawn with the same generator.
        """


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The layout of corrupted text: pieces of documents, corrupted each time.

    Attributes:
      length: T, tokens of a row.
      corrupt: makes rows from pieces.
      whole_documents: whether a piece has text of one document only; otherwise pieces
        are cut from the concatenation of all documents.
      eos_id: id at the end of every document, which is removed; None if there is none.
    """

    length: int
    corrupt: Corrupt
    whole_documents: bool
    eos_id: int | None

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        return f"{'documents' if self.whole_documents else 'pieces'}{self._size}"

    def cache_key(self) -> dict:
        """The settings that the records depend on."""
        return {"name": self.name, "eos_id": self.eos_id}

    @property
    def has_text_bytes(self) -> bool:
        """False: targets are not all tokens of the text, each once."""
        return False

    def records(self, documents: Iterable[np.ndarray]) -> Iterator[Record]:
        """Yields pieces of documents, which are int [N] with EOS."""
        texts = (d[:-1] if self.eos_id is not None else d for d in documents)
        if not self.whole_documents:
            return cut(texts, self._size, self._size)
        return (
            {"tokens": document[start : start + self._size]}
            for document in texts
            for start in range(0, len(document), self._size)
        )

    def row(
        self,
        record: Record,
        rng: Callable[[], Rng],
        other: Callable[[Rng], Record] | None = None,
    ) -> Row:
        """The row of a record; see `RowLayout.row` and `Corrupt.row`."""
        generator = rng()
        tokens = record["tokens"].astype(np.int32)

        def another() -> np.ndarray:
            # In a small dataset the same piece may be drawn again and again.
            for _ in range(_TRIES):
                found = other(generator)["tokens"].astype(np.int32)
                if len(found) and not np.array_equal(found, tokens):
                    return found
            return tokens

        return self.corrupt.row(tokens, generator, another)

    def check(self, record: Record) -> None:
        """Raises ValueError if the record does not fit the layout."""
        tokens = record["tokens"]
        if tokens.ndim != 1 or not 0 < len(tokens) <= self._size:
            raise ValueError(f"{len(tokens)} tokens; expected 1 to {self._size}")

    def filled(self, record: Record) -> tuple[int, int]:
        """(tokens of the record, maximum number of tokens)."""
        return len(record["tokens"]), self._size

    @property
    def _size(self) -> int:
        return self.corrupt.raw_length


def partition(total: int, parts: int, rng: Rng) -> np.ndarray:
    """A random partition of `total` into `parts` positive numbers, int64 [parts].

    All partitions are equally likely.
    """
    ends = np.empty(parts, np.int64)
    ends[:-1] = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    ends[-1] = total
    ends[1:] -= ends[:-1].copy()
    return ends
