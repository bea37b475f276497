"""Rows of texts or images that are read, and texts tokenized, as they are needed."""

import collections
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fmjax.data.records import BadRecord, Record, Row, RowLayout, empty_record
from fmjax.data.runtime.batches import EVAL_SEED, row_rng
from fmjax.data.runtime.unit_coding import UnitCoding
from fmjax.data.sources.division import Division, RawExample
from fmjax.data.sources.examples import Skipped
from fmjax.data.tasks.bounded_skipped import BoundedSkipped
from fmjax.data.tokenizers.tokenizers import Tokenizer

# Number of recent records from which a row can draw another text (next sentences).
_RECENT = 256


class StreamedMember(NamedTuple):
    """A task of the mixture.

    Attributes:
      name: of the task.
      division: its split.
      rate: share of the rows, relative to the other members.
    """

    name: str
    division: Division
    rate: float


class StreamedRows:
    """Rows of one split of a task, or of a mixture of them.

    Attributes:
      skipped: the documents or images left out so far.
      layout: makes records and rows.
      binding: gin name of the field that asks for streaming, for messages.
    """

    def __init__(
        self,
        members: Sequence[StreamedMember],
        split: str,
        layout: RowLayout,
        coding: UnitCoding,
        tokenizer: Tokenizer | None,
        max_corrupt_fraction: float,
        binding: str,
    ):
        """Reads nothing yet.

        Args:
          members: the tasks.
          split: "train" or "validation".
          layout: makes records and rows.
          coding: makes what the layout takes of the examples.
          tokenizer: of the texts; None without text.
          max_corrupt_fraction: as of the data.
          binding: gin name of the field that asks for streaming, for messages.
        """
        self.members, self._split = members, split
        self.layout, self._coding, self._tokenizer = layout, coding, tokenizer
        self.binding = binding
        name = " and ".join(member.name for member in members)
        self.skipped = BoundedSkipped(f"{name} {split}", max_corrupt_fraction)
        self._lock = threading.Lock()

    def in_order(self) -> Iterator[Callable[[], Row]]:
        """Functions that make each row of the split, in the order of a cache.

        They have the random numbers of a cache's evaluation, and several threads may
        call them.
        """
        numbers = itertools.count()
        for member in self.members:
            division = member.division
            examples = (e for part in division.parts() for e in division.read(part))
            name = f"{member.name} {self._split}"
            documents = self._coding.encoded(
                examples, name, self._tokenizer, self.skipped
            )
            yield from self._rows(documents, numbers)

    def records(
        self, member: StreamedMember, examples: Sequence[RawExample]
    ) -> list[Record]:
        """The records of a window of examples; several threads may call it at once."""
        own, name = Skipped(), f"{member.name} {self._split}"
        documents = self._coding.encoded(examples, name, self._tokenizer, own)
        contents = (document.content for document in documents)
        found = [self._small(record) for record in self.layout.records(contents)]
        with self._lock:
            self.skipped.merge(own)
        return found

    def row(
        self,
        record: Record,
        others: Sequence[Record],
        rng: Callable[[], np.random.Generator],
    ) -> Row:
        """The row of a record; several threads may call it.

        A record of which no row can be made is left out: its row has weight 0.

        Args:
          record: the record.
          others: records read with it, from which the row may draw another.
          rng: returns the row's generator.
        """

        def other(rng: np.random.Generator) -> Record:
            return others[int(rng.integers(len(others)))]

        try:
            return self.layout.row(record, rng, other)
        except BadRecord as error:
            with self._lock:
                self.skipped.add(f"a record of {self._split} {error}")
            return self.layout.row(empty_record(), rng, other)

    def _small(self, record: Record) -> Record:
        """A record to hold in memory: as in a cache, ids take two bytes if they can."""
        if self._tokenizer is None or "tokens" not in record:
            return record
        dtype = np.uint16 if self._tokenizer.vocab_size <= 1 << 16 else np.int32
        return record | {"tokens": record["tokens"].astype(dtype)}

    def _rows(self, documents, numbers: Iterator[int]) -> Iterator[Callable[[], Row]]:
        def contents() -> Iterator:
            for document in documents:
                self.skipped.good_bytes += document.size or 0
                yield document.content

        recent: collections.deque = collections.deque(maxlen=_RECENT)
        for record in self.layout.records(contents()):
            recent.append(record)
            rng = row_rng(EVAL_SEED, next(numbers))
            yield functools.partial(self.row, record, tuple(recent), rng)
