"""Rows of text that is read and tokenized as it is needed."""

import collections
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fmjax.data.records import Record, Row, RowLayout
from fmjax.data.sources.division import Division, TextExample
from fmjax.data.sources.examples import Skipped
from fmjax.data.tasks.bounded_skipped import BoundedSkipped
from fmjax.data.tasks.documents import tokenized_examples
from fmjax.data.text.chats import longest_chat
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
    """Rows of one split of a text task, or of a mixture of them.

    Attributes:
      skipped: the documents left out so far.
    """

    def __init__(
        self,
        members: Sequence[StreamedMember],
        split: str,
        layout: RowLayout,
        tokenizer: Tokenizer,
        max_corrupt_fraction: float = 0.01,
    ):
        """Reads nothing yet.

        Args:
          members: the tasks.
          split: "train" or "validation".
          layout: makes records and rows.
          tokenizer: of the texts.
          max_corrupt_fraction: `data.max_corrupt_fraction`.
        """
        self.members, self._split = members, split
        self.layout, self._tokenizer = layout, tokenizer
        self._longest = longest_chat(layout)
        name = " and ".join(member.name for member in members)
        self.skipped = BoundedSkipped(f"{name} {split}", max_corrupt_fraction)
        self._lock = threading.Lock()

    @property
    def has_text_bytes(self) -> bool:
        """Whether targets are the text itself, so that bits per byte are defined."""
        return self.layout.has_text_bytes

    def in_order(self) -> Iterator[Row]:
        """Every row of the split once, in the order of a cache."""
        for member in self.members:
            division = member.division
            examples = (e for part in division.parts() for e in division.read(part))
            name = f"{member.name} {self._split}"
            documents = tokenized_examples(
                examples, name, self._tokenizer, self.skipped, self._longest
            )
            yield from self._rows(documents)
        self.skipped.check_whole()

    def records(
        self, member: StreamedMember, examples: Sequence[TextExample]
    ) -> list[Record]:
        """The records of a window of examples; several threads may call it at once."""
        own, name = Skipped(), f"{member.name} {self._split}"
        documents = tokenized_examples(
            examples, name, self._tokenizer, own, self._longest
        )
        contents = (document.content for document in documents)
        # Windows are held in memory: as in a cache, ids take two bytes if they can.
        dtype = np.uint16 if self._tokenizer.vocab_size <= 1 << 16 else np.int32
        found = [
            record | {"tokens": record["tokens"].astype(dtype)}
            for record in self.layout.records(contents)
        ]
        with self._lock:
            self.skipped.merge(own)
        return found

    def _rows(self, documents) -> Iterator[Row]:
        rng = np.random.default_rng([0])

        def contents() -> Iterator:
            for document in documents:
                self.skipped.good_bytes += document.size or 0
                yield document.content

        recent: collections.deque = collections.deque(maxlen=_RECENT)
        for record in self.layout.records(contents()):
            recent.append(record)
            yield self.layout.row(
                record, lambda: rng, lambda rng: recent[int(rng.integers(len(recent)))]
            )
