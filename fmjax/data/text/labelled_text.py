"""The layout of labelled texts: a text, or two, in a row of its own, and the labels."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fmjax.data.records import Record, Row
from fmjax.data.tasks.documents import LabelledExample
from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.special_template import Slot


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """The layout of labelled texts; see `RowLayout`.

    Attributes:
      length: T, tokens of a row.
      template: special tokens around one text or two.
      classes: names of the K classes; none if labels are numbers.
      several: whether a row has any number of labels rather than one.
      numbers: whether a label is a number rather than a class.
      augment: changes the tokens of a text, drawing from a generator; None for no
        change.
    """

    length: int
    template: tuple[Slot, ...]
    classes: tuple[str, ...]
    several: bool
    numbers: bool = False
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        return f"labelled{self.length}"

    def cache_key(self) -> dict:
        """The settings that the records depend on, and the names of the classes."""
        key = {
            "name": self.name,
            "room": self._room,
            "texts": self._texts,
            "classes": self.classes,
            "several": self.several,
        }
        return key | {"numbers": True} if self.numbers else key

    @property
    def has_text_bytes(self) -> bool:
        """False: no token is a target."""
        return False

    def records(self, examples: Iterable[LabelledExample]) -> Iterator[Record]:
        """Yields the record of each example; long texts are truncated at the end."""
        for texts, labels in examples:
            kept = _truncated(texts, self._room)
            yield {
                "tokens": np.concatenate(kept),
                "lengths": np.array([len(text) for text in kept], np.int32),
                "labels": np.asarray(labels, np.float32 if self.numbers else np.int32),
            }

    def row(
        self,
        record: Record,
        rng: Callable[[], np.random.Generator],
        other=None,
    ) -> Row:
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: returns the generator of `augment`.
          other: not used.

        Returns:
          `tokens`, `segment_ids` int32 [T], 1 for tokens and 0 for padding;
          `token_types` int32 [T] if the second text has another type; `labels` int32
          [], or with several labels float32 [K] of zeros and ones, or float32 [] of a
          number; `weights` float32 [].
        """
        del other
        T = self.length
        row = {"tokens": np.zeros(T, np.int32), "segment_ids": np.zeros(T, np.int32)}
        if any(slot.token_type for slot in self.template):
            row["token_types"] = np.zeros(T, np.int32)
        row["labels"] = np.zeros((), np.float32 if self.numbers else np.int32)
        if self.several:
            row["labels"] = np.zeros(len(self.classes), np.float32)
        row["weights"] = np.zeros((), np.float32)
        if "labels" not in record:
            return row
        ends = np.cumsum(record["lengths"])[:-1]
        texts = np.split(record["tokens"].astype(np.int32), ends)
        if self.augment is not None:
            generator = rng()
            changed = tuple(self.augment(text, generator) for text in texts)
            texts = _truncated(changed, self._room)
        ids, types = special_template.fill(self.template, [t.tolist() for t in texts])
        row["tokens"][: len(ids)] = ids
        row["segment_ids"][: len(ids)] = 1
        if "token_types" in row:
            row["token_types"][: len(ids)] = types
        if self.several:
            row["labels"][record["labels"]] = 1
        else:
            row["labels"][...] = record["labels"][0]
        row["weights"][...] = 1
        return row

    def check(self, record: Record) -> None:
        """Raises ValueError or KeyError if the record does not fit the layout."""
        lengths, labels = record["lengths"], record["labels"]
        if lengths.sum() != len(record["tokens"]) or len(lengths) != self._texts:
            raise ValueError("lengths of a record of labelled texts do not add up")
        if lengths.sum() > self._room:
            raise ValueError(f"{lengths} tokens in a record are too many")
        if not self.several and len(labels) != 1:
            raise ValueError(f"{len(labels)} labels; expected one")
        if (labels.dtype.kind == "f") != self.numbers:
            raise ValueError(f"labels are {labels.dtype}")
        if self.numbers:
            if not np.isfinite(labels).all():
                raise ValueError(f"label {labels} is not finite")
            return
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"label {labels} of {len(self.classes)} classes")

    def filled(self, record: Record) -> tuple[int, int]:
        """(tokens with special ones, T) of the record's row."""
        return len(record["tokens"]) + self.length - self._room, self.length

    @property
    def _room(self) -> int:
        """Tokens of a row without the special ones."""
        return self.length - sum(slot.text is None for slot in self.template)

    @property
    def _texts(self) -> int:
        return sum(slot.text is not None for slot in self.template)


def _truncated(texts: tuple[np.ndarray, ...], room: int) -> list[np.ndarray]:
    """Texts of together at most `room` tokens: the longer one is cut first.

    As by "longest_first" of transformers' fast tokenizers.
    """
    if len(texts) == 1:
        return [texts[0][:room]]
    first, second = texts
    if len(first) > len(second):
        second = second[: max(room - len(first), room // 2)]
        return [first[: room - len(second)], second]
    first = first[: max(room - len(second), room // 2)]
    return [first, second[: room - len(first)]]
