"""The source `record_pairs`: pairs of texts, from two fields of records."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmjax.configurable import configurable
from fmjax.data.records import BadRecord
from fmjax.data.sources.classes import Classes, find_classes
from fmjax.data.sources.division import TextExample
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.formats import RecordOptions, read_records
from fmjax.data.sources.record_formats.record_label import Labels
from fmjax.data.sources.record_formats.record_text import RecordText
from fmjax.data.sources.record_source import RecordSource
from fmjax.data.sources.source import DOCUMENT_BYTES, Document, generated_source
from fmjax.errors import UserError

# Fields that caches of earlier versions did not know, and their defaults.
_NEW = (("negatives", ()), ("labels", False), ("classes", ()))


@configurable("record_pairs")
@dataclasses.dataclass(frozen=True)
class RecordPairs(RecordSource):
    """Pairs of texts, from two fields of records: questions and answers, translations.

    Files, formats, splits and corrupt records are as of `record_files`. A pair of which
    a text has more than 4 MiB counts as corrupt.

    Attributes:
      inputs: the field that holds the encoder's text, or a template over fields, as
        `record_files.text`.
      targets: the field that holds the decoder's text, or a template over fields.
      negatives: for @text_contrast(), fields or templates of hard negatives: texts
        that are like the targets but do not belong to the inputs.
      labels: whether targets are labels as text (T5), so that a run names its classes,
        @label_scores() scores them and `run.classify` predicts them. A pair whose
        target is none of the classes counts as corrupt.
      classes: the texts of the classes 0, 1, … with labels = True; if empty, the
        different targets of the training files in alphabetical order, numbers in their
        own.
    """

    inputs: str = "inputs"
    targets: str = "targets"
    negatives: tuple[str, ...] = ()
    labels: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._parts()
        if self.labels and self.negatives:
            raise UserError(
                f"record_pairs.negatives = {self.negatives!r}: expected () with "
                "record_pairs.labels = True."
            )
        if self.classes and not self.labels:
            raise UserError(
                f"record_pairs.classes = {self.classes!r:.200}: expected (), or "
                "record_pairs.labels=True."
            )

    def documents(self, split: str) -> Iterator[Document]:
        """The texts of every valid record, for training a tokenizer."""
        for record in self.found(split):
            for name, texts, fault, *_ in self.examples_of(*record):
                for text in texts:
                    if not fault and text.strip() and len(text) <= DOCUMENT_BYTES:
                        yield name, text

    def pairs(self, split: str) -> Iterator[tuple[str, bytes, bytes, str]]:
        """Yields (name, input, target, fault) of the records of a split; see `found`.

        A text of more than 4 MiB is truncated to a length that is still refused.
        """
        for record in self.found(split):
            for pair in self.examples_of(*record):
                inputs, targets, *_ = pair.texts
                yield pair.name, inputs, targets, pair.fault

    def division(self, split: str) -> RecordDivision:
        """The split in parts; see `Division`."""
        return self.divided(split)

    def examples_of(
        self, name: str, values: tuple, fault: str
    ) -> Iterator[TextExample]:
        """Yields the pair of a record."""
        texts = (b"", b"") if fault else (t[: DOCUMENT_BYTES + 1] for t in values)
        yield TextExample(name, tuple(texts), fault)

    def class_names(self) -> tuple[str, ...]:
        """The texts of the classes 0, 1, …; empty if targets are no labels."""
        return () if self._classes is None else self._classes.names

    def input_text(self, texts: Sequence[str]) -> str:
        """What the encoder reads of a record with these texts.

        Args:
          texts: of the fields of `inputs`, in their order there.

        Raises:
          UserError: there are more texts or fewer than fields.
        """
        template = RecordText(self.inputs, "record_pairs.inputs")
        if len(texts) != len(names := [field.name for field in template.fields]):
            raise UserError(
                f"found {len(texts)} texts; expected {len(names)}, of the fields "
                f"{', '.join(names)} of record_pairs.inputs = {self.inputs!r}."
            )
        return template.of(texts).decode(errors="replace")

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        names = ("inputs", "targets", "name", "record_fault")
        return {name: name for name in names}

    def seqio_source(self):
        """A seqio.FunctionDataSource.

        Raises:
          UserError: there are hard negatives.
        """
        if self.negatives:
            raise UserError(
                f"record_pairs.negatives = {self.negatives!r}: expected () in a mixture"
                " with tasks of seqio that is streamed."
            )
        names = ("name", "inputs", "targets", "record_fault")
        return generated_source(self.splits, names, self.pairs)

    def _parts(self) -> tuple[RecordText, ...]:
        return (
            RecordText(self.inputs, "record_pairs.inputs"),
            RecordText(self.targets, "record_pairs.targets"),
            *(RecordText(text, "record_pairs.negatives") for text in self.negatives),
        )

    @functools.cached_property
    def _classes(self) -> Classes | None:
        if not self.labels:
            return None
        files, _ = self._files("train")
        self._check(files)
        binding = "record_pairs.classes"
        return find_classes(
            binding, self.classes, files, self.targets, self._targets_of
        )

    def _targets_of(self, file: Path) -> Iterator[Labels]:
        target = RecordText(self.targets, "record_pairs.targets")
        for record in read_records(
            file, RecordOptions((target,), self._csv, self._form)
        ):
            if not record.fault and record.values[0].strip():
                yield (record.values[0].decode(errors="replace"),)

    def _checked(self, values: tuple) -> tuple:
        if self._classes is not None and values[1].strip():
            label = values[1].decode(errors="replace")
            if label not in self._classes.names:
                raise BadRecord(
                    f"has the target {label!r:.50}; expected one of the "
                    f"{len(self._classes.names)} classes {self._classes.names!r:.200}"
                )
        return values

    def _settings(self) -> tuple:
        known = tuple(each for each in super()._settings() if each not in _NEW)
        # Which pairs are corrupt depends on the classes.
        return (*known, self.class_names()) if self.labels else known

    def _identity(self, values: tuple[bytes, ...]) -> bytes:
        inputs, targets, *_ = values
        return b"%d %s%s" % (len(inputs), inputs, targets)

    def _wanted(self) -> str:
        names = ("inputs", "targets", *["negatives"] * bool(self.negatives))
        return ", ".join(f"record_pairs.{n} = {getattr(self, n)!r}" for n in names)
