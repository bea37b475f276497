"""Pieces of documents that are corrupted anew whenever they are read.

What a corruption does is one file each; here is what they have in common.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from fmjax.data.text.packing import Record, Row, cut
from fmjax.data.tokenizers.tokenizers import Tokenizer

Rng = np.random.Generator

# Draws of another piece before one is content with the same.
_TRIES = 10


class Corruption(Protocol):
    """A configurable that says how text is corrupted."""

    def raw_length(self, length: int) -> int:
        """The most tokens of text that fit into rows of `length`.

        Raises:
          UserError: length is too small.
        """

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "Corrupt":
        """The same for a vocabulary, rows of `length` and text of `raw_length` tokens.

        Raises:
          UserError: the vocabulary lacks a special token.
        """


class Corrupt(Protocol):
    """A corruption of a known vocabulary and length.

    Attributes:
      raw_length: the most tokens of text in a row.
    """

    raw_length: int

    def row(self, tokens: np.ndarray, rng: Rng, other: Callable[[], np.ndarray]) -> Row:
        """A row of int32 [n ≤ raw_length] tokens of text; of none, a row of zeros.

        Args:
          tokens: of one piece.
          rng: everything random is drawn from it.
          other: gives the tokens of another piece, drawn from the same generator.
        """


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A layout: text without ends of documents in pieces, each corrupted when read.

    Attributes:
      length: T, tokens of a row.
      corrupt: what makes rows of pieces.
      whole_documents: whether a piece ends with its document, instead of going on.
      eos_id: which every document ends with; it is taken off. None for none.
    """

    length: int
    corrupt: Corrupt
    whole_documents: bool
    eos_id: int | None

    @property
    def name(self) -> str:
        """Says what the records are, in the name of a cache's folder."""
        return f"{'documents' if self.whole_documents else 'pieces'}{self._size}"

    def cache_key(self) -> dict:
        """What of the layout shapes the records."""
        return {"name": self.name, "eos_id": self.eos_id}

    @property
    def has_text_bytes(self) -> bool:
        """Targets are not the text's own tokens, each once."""
        return False

    def records(self, documents: Iterable[np.ndarray]) -> Iterator[Record]:
        """Pieces of documents (int arrays [N], EOS included)."""
        bare = (d[:-1] if self.eos_id is not None else d for d in documents)
        if not self.whole_documents:
            return cut(bare, self._size, self._size)
        return (
            {"tokens": document[start : start + self._size]}
            for document in bare
            for start in range(0, len(document), self._size)
        )

    def row(
        self,
        record: Record,
        rng: Callable[[], Rng],
        other: Callable[[Rng], Record] | None = None,
    ) -> Row:
        """The record, corrupted; see `Corrupt.row`."""
        generator = rng()
        tokens = record["tokens"].astype(np.int32)

        def another() -> np.ndarray:
            # Where there is little else the piece itself comes up; not for ever.
            for _ in range(_TRIES):
                found = other(generator)["tokens"].astype(np.int32)
                if len(found) and not np.array_equal(found, tokens):
                    return found
            return tokens

        return self.corrupt.row(tokens, generator, another)

    def check(self, record: Record) -> None:
        """Raises ValueError if `row` cannot take the record."""
        tokens = record["tokens"]
        if tokens.ndim != 1 or not 0 < len(tokens) <= self._size:
            raise ValueError(f"{len(tokens)} tokens; expected 1 to {self._size}")

    def filled(self, record: Record) -> tuple[int, int]:
        """Tokens of a record, and of the longest one."""
        return len(record["tokens"]), self._size

    @property
    def _size(self) -> int:
        return self.corrupt.raw_length


def partition(total: int, parts: int, rng: Rng) -> np.ndarray:
    """`parts` lengths of at least 1 that add up to `total`, uniformly drawn."""
    ends = np.empty(parts, np.int64)
    ends[:-1] = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    ends[-1] = total
    ends[1:] -= ends[:-1].copy()
    return ends
