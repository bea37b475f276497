"""The source `labelled_records`: texts, or two texts, of records, and their labels."""

import dataclasses
from collections.abc import Iterator

from fmjax.configurable import configurable
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.class_source import ClassSource
from fmjax.data.sources.division import TextExample
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.parts import Part
from fmjax.data.sources.record_formats.record_label import RecordLabel, RecordNumber
from fmjax.data.sources.record_formats.record_text import RecordText
from fmjax.data.sources.source import DOCUMENT_BYTES, Document
from fmjax.errors import UserError

_NO_NUMBERS = ("numbers", False)


@configurable("labelled_records")
@dataclasses.dataclass(frozen=True)
class LabelledRecords(ClassSource):
    """Texts of records with labels, or two texts with labels, for classification.

    Files, formats, splits and corrupt records are as of `record_files`; a record whose
    label is none of the classes counts as corrupt. Records with equal texts are in the
    same split, whatever their labels. A label is an integer, a string or a boolean, or
    for regression a number.

    Attributes:
      text: the field that holds the text, or a template over fields, as
        `record_files.text`.
      second_text: the field, or a template, of the second text of pairs, as for
        entailment; None for single texts.
      label: the field that holds the label.
      classes: names of the classes 0, 1, …; a label is a name, or else its number. If
        empty, they are those that the files declare (ClassLabel of `datasets`, and
        TFDS), or else the different labels of the training files in alphabetical order,
        numbers in their own.
      several: whether a record has any number of labels, in a list or a string.
      label_separator: what separates several labels in a string, such as ','.
      numbers: whether a label is a number rather than a class, for regression.
    """

    text: str = "text"
    second_text: str | None = None
    label: str = "label"
    classes: tuple[str, ...] = ()
    several: bool = False
    label_separator: str | None = None
    numbers: bool = False

    def __post_init__(self):
        super().__post_init__()
        self._parts()
        if self.numbers and (self.several or self.classes):
            raise UserError(
                f"labelled_records.numbers = True with labelled_records.several = "
                f"{self.several} and labelled_records.classes = {self.classes!r}: "
                "expected False and (), since a label is one number."
            )
        if self.label_separator is not None and not (
            self.several and self.label_separator
        ):
            raise UserError(
                f"labelled_records.label_separator = {self.label_separator!r}: "
                "expected None, or text with labelled_records.several=True."
            )

    def documents(self, split: str) -> Iterator[Document]:
        """All texts of valid records, for training a tokenizer."""
        for name, *texts, _, fault in self.labelled(split):
            for text in texts:
                if not fault and text.strip() and len(text) <= DOCUMENT_BYTES:
                    yield name, text

    def labelled(
        self, split: str
    ) -> Iterator[tuple[str, bytes, bytes, tuple[int | float, ...], str]]:
        """Yields (name, text, second text, labels, fault) of the records of a split.

        The second text is empty if there is none. A text of more than 4 MiB is
        truncated to a length that is still refused. See `found`.
        """
        for record in self.found(split):
            for found in self.examples_of(*record):
                first, second = (*found.texts, b"")[:2]
                yield found.name, first, second, found.labels or (), found.fault

    def division(self, split: str) -> RecordDivision:
        """The split in parts; see `Division`."""
        return self.divided(split)

    def examples_of(
        self, name: str, values: tuple, fault: str
    ) -> Iterator[TextExample]:
        """Yields the labelled text, or two, of a record."""
        if fault:
            yield TextExample(name, (b"",), fault, ())
            return
        *texts, labels = values
        kept = tuple(text[: DOCUMENT_BYTES + 1] for text in texts)
        yield TextExample(name, kept, labels=labels)

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        names = {"targets": "text", "labels": "labels", "name": "name"}
        names |= {"record_fault": "record_fault"}
        return names if self.second_text is None else names | {"second": "second"}

    def seqio_source(self):
        """A seqio.FunctionDataSource; labels are int64 [number of them] or float32."""
        seqio = import_seqio()
        import tensorflow as tf

        text, names = tf.TensorSpec((), tf.string), ("name", "text", "second")
        spec = dict.fromkeys((*names, "record_fault"), text)
        kind = tf.float32 if self.numbers else tf.int64
        spec["labels"] = tf.TensorSpec((None,), kind)
        order = (*names, "labels", "record_fault")

        def dataset(split, shuffle_files, seed=None):
            del shuffle_files, seed  # The order is fixed; seqio shuffles later.
            return tf.data.Dataset.from_generator(
                lambda: (dict(zip(order, example)) for example in self.labelled(split)),
                output_signature=spec,
            )

        return seqio.FunctionDataSource(dataset, splits=self.splits)

    def _settings(self) -> tuple:
        # Earlier versions had no numbers.
        known = super()._settings()
        return known if self.numbers else tuple(s for s in known if s != _NO_NUMBERS)

    def _label(self) -> RecordLabel | None:
        if self.numbers:
            return None
        return RecordLabel(self.label, self.several, self.label_separator)

    def _parts(self) -> tuple[Part, ...]:
        parts: list[Part] = [RecordText(self.text, "labelled_records.text")]
        if self.second_text is not None:
            binding = "labelled_records.second_text"
            parts.append(RecordText(self.second_text, binding))
        return (*parts, self._label() or RecordNumber(self.label))

    def _identity(self, values: tuple) -> bytes:
        *texts, _ = values
        return b"%d %s" % (len(texts[0]), b"".join(texts))

    def _wanted(self) -> str:
        bound = ("text", "second_text", "label")
        return ", ".join(f"labelled_records.{n} = {getattr(self, n)!r}" for n in bound)
