"""Records, which a cache stores, and the rows that layouts make of them for a model."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

Record = dict[str, np.ndarray]
Row = dict[str, np.ndarray]


class BadRecord(ValueError):
    """A record of which no row can be made."""


class RowLayout(Protocol):
    """The interface of layouts: from documents to records of a cache, and to rows."""

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""

    def cache_key(self) -> dict:
        """The settings that the records depend on."""

    @property
    def has_text_bytes(self) -> bool:
        """Whether every token of the text is a target exactly once."""

    def records(self, documents: Iterable) -> Iterator[Record]:
        """Yields records of documents: int [N] with EOS, pairs of these, or images."""

    def row(
        self,
        record: Record,
        rng: Callable[[], np.random.Generator] | None = None,
        other: Callable[[np.random.Generator], Record] | None = None,
    ) -> Row:
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: returns the generator of all random numbers of the row.
          other: returns another record, drawn with the given generator.

        Raises:
          BadRecord: no row can be made of the record.
        """

    def check(self, record: Record) -> None:
        """Raises ValueError if the record does not fit the layout."""

    def filled(self, record: Record) -> tuple[int, int]:
        """(used positions, all positions) of the record's row."""


def empty_record() -> Record:
    """A record without tokens, whose row is zeros of weight 0."""
    return {name: np.zeros(0, np.int32) for name in ("tokens", "lengths")}
