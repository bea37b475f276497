"""The layout of labelled words: a text in a row of its own, its tokens labelled."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from fmjax.data.records import Record, Row
from fmjax.data.tasks.documents import NO_LABEL, LabelledExample
from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.special_template import Slot


@dataclasses.dataclass(frozen=True)
class LabelledTokens:
    """The layout of texts with labels of tokens; see `RowLayout`.

    Attributes:
      length: T, tokens of a row.
      template: special tokens around a text.
      classes: names of the K classes.
    """

    length: int
    template: tuple[Slot, ...]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        return f"words{self.length}"

    def cache_key(self) -> dict:
        """The settings that the records depend on, and the names of the classes."""
        return {"name": self.name, "room": self._room, "classes": self.classes}

    @property
    def has_text_bytes(self) -> bool:
        """False: no token is a target."""
        return False

    def records(self, examples: Iterable[LabelledExample]) -> Iterator[Record]:
        """Yields the record of each example; long texts are truncated at the end."""
        for (tokens,), labels in examples:
            kept = tokens[: self._room]
            yield {
                "tokens": kept,
                "lengths": np.array([len(kept)], np.int32),
                "labels": np.asarray(labels[: self._room], np.int32),
            }

    def row(self, record: Record, rng=None, other=None) -> Row:
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: not used.
          other: not used.

        Returns:
          `tokens`, `segment_ids` int32 [T], 1 for tokens and 0 for padding; `labels`
          int32 [T], -100 where there is none; `weights` float32 [].
        """
        del rng, other
        T = self.length
        row = {"tokens": np.zeros(T, np.int32), "segment_ids": np.zeros(T, np.int32)}
        row["labels"] = np.full(T, NO_LABEL, np.int32)
        row["weights"] = np.zeros((), np.float32)
        if "labels" not in record:
            return row
        ids, _ = special_template.fill(self.template, [record["tokens"].tolist()])
        start = special_template.text_start(self.template)
        row["tokens"][: len(ids)] = ids
        row["segment_ids"][: len(ids)] = 1
        row["labels"][start : start + len(record["labels"])] = record["labels"]
        row["weights"][...] = 1
        return row

    def check(self, record: Record) -> None:
        """Raises ValueError or KeyError if the record does not fit the layout."""
        lengths, labels = record["lengths"], record["labels"]
        if [len(record["tokens"])] != lengths.tolist() or len(labels) != lengths.sum():
            raise ValueError("tokens and labels of a record differ in number")
        if len(labels) > self._room:
            raise ValueError(f"{len(labels)} tokens in a record are too many")
        if labels.dtype.kind == "f":
            raise ValueError(f"labels are {labels.dtype}")
        wrong = (labels != NO_LABEL) & ((labels < 0) | (labels >= len(self.classes)))
        if wrong.any():
            raise ValueError(f"label {labels[wrong][0]} of {len(self.classes)} classes")

    def filled(self, record: Record) -> tuple[int, int]:
        """(tokens with special ones, T) of the record's row."""
        return len(record["tokens"]) + self.length - self._room, self.length

    @property
    def _room(self) -> int:
        """Tokens of a row without the special ones."""
        return self.length - sum(slot.text is None for slot in self.template)
