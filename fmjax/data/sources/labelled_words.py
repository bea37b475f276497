"""The source `labelled_words`: texts as words of records, and a label of each word."""

import dataclasses
from collections.abc import Iterator

from fmjax.configurable import configurable
from fmjax.data.records import BadRecord
from fmjax.data.sources.class_source import ClassSource
from fmjax.data.sources.division import TextExample
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.parts import Part
from fmjax.data.sources.record_formats.record_label import RecordLabel
from fmjax.data.sources.record_formats.record_words import RecordWords
from fmjax.data.sources.source import DOCUMENT_BYTES, Document
from fmjax.errors import UserError


@configurable("labelled_words")
@dataclasses.dataclass(frozen=True)
class LabelledWords(ClassSource):
    """Texts of records, as words with a label each, such as tags of named entities.

    Files, formats, splits and corrupt records are as of `record_files`. The first token
    of a word has its label, the others have none. A record counts as corrupt if it has
    not as many labels as words.

    Attributes:
      words: the field that holds the words: a list of strings, or a string that is cut
        at white space.
      labels: the field that holds their labels: a list of integers or strings, or a
        string that is cut at spaces.
      classes: names of the classes 0, 1, …, as of `labelled_records.classes`.
    """

    words: str = "words"
    labels: str = "labels"
    classes: tuple[str, ...] = ()

    def documents(self, split: str) -> Iterator[Document]:
        """The words of each valid record, with spaces between, to train a tokenizer."""
        for name, values, fault in self.found(split):
            if not fault and len(text := b" ".join(values[0])) <= DOCUMENT_BYTES:
                yield name, text

    def division(self, split: str) -> RecordDivision:
        """The split in parts; see `Division`."""
        return self.divided(split)

    def examples_of(
        self, name: str, values: tuple, fault: str
    ) -> Iterator[TextExample]:
        """Yields the labelled words of a record."""
        if fault:
            yield TextExample(name, (), fault, (), are_words=True)
            return
        words, labels = values
        yield TextExample(name, words, labels=labels, are_words=True)

    def features(self) -> dict[str, str]:
        """Names of the features of examples."""
        return {"targets": "words", "labels": "labels", "name": "name"}

    def seqio_source(self):
        """Raises a UserError: seqio tokenizes texts alone."""
        raise UserError(
            "@labelled_words() cannot be mixed with a task of seqio's registry while "
            "streaming; bind data.streaming=False."
        )

    def _label(self) -> RecordLabel:
        return RecordLabel(self.labels, several=True, separator=" ")

    def _parts(self) -> tuple[Part, ...]:
        return RecordWords(self.words), self._label()

    def _checked(self, values: tuple) -> tuple:
        words, labels = super()._checked(values)
        if len(words) != len(labels):
            raise BadRecord(
                f"has {len(words)} words and {len(labels)} labels; expected a label "
                "for each word"
            )
        return words, labels

    def _identity(self, values: tuple) -> bytes:
        words, _ = values
        return b" ".join(words)

    def _wanted(self) -> str:
        return (
            f"labelled_words.words = {self.words!r}, labelled_words.labels = "
            f"{self.labels!r}"
        )
