"""The source `record_files`: texts of records, from JSON, CSV, Parquet and others."""

import dataclasses
from collections.abc import Iterator

from fmjax.configurable import configurable
from fmjax.data.sources.division import TextExample
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.record_text import RecordText
from fmjax.data.sources.record_source import RecordSource
from fmjax.data.sources.source import Document, generated_source
from fmjax.data.sources.text_reader import cut


@configurable("record_files")
@dataclasses.dataclass(frozen=True)
class RecordFiles(RecordSource):
    """Texts of records: JSON lines, JSON, CSV, TSV, Parquet, Arrow, tar and others.

    The format follows from the suffix: .jsonl or .ndjson; .json, a list of objects, an
    object that has one such list, or JSON lines; .csv and .tsv; .tar, WebDataset's
    archives, whose fields are the endings of names; these also with .gz, .bz2, .xz or
    .zst; .parquet; .arrow, .feather or .ipc, in Arrow's stream or file format;
    .tfrecord and .array_record, with tf.train.Examples. So folders of
    `datasets.save_to_disk` and of TensorFlow Datasets and Parquet trees of the Hugging
    Face Hub are read as they are. A record without the text, or with another type,
    counts as corrupt (`data.max_corrupt_fraction`). A text of more than 4 MiB is cut
    into several documents, at line ends if possible.

    Attributes:
      text: the field that holds the text, or a template: '{title}: {body}'.
        'meta.text' is the field `text` of `meta`. Fields are strings; in a template
        also integers.
    """

    text: str = "text"

    def __post_init__(self):
        super().__post_init__()
        self._parts()

    def documents(self, split: str) -> Iterator[Document]:
        """The texts of the valid records of a split, without blank ones."""
        for name, text, fault in self.records(split):
            if not fault and text.strip():
                yield name, text

    def records(self, split: str) -> Iterator[tuple[str, bytes, str]]:
        """Yields (name, text, fault) of the records of a split; see `found`."""
        for record in self.found(split):
            for example in self.examples_of(*record):
                (text,) = example.texts
                yield example.name, text, example.fault

    def division(self, split: str) -> RecordDivision:
        """The split in parts; see `Division`."""
        return self.divided(split)

    def examples_of(
        self, name: str, values: tuple, fault: str
    ) -> Iterator[TextExample]:
        """Yields the documents of a record: several, if its text is long."""
        text = b"" if fault else values[0]
        if not text:
            yield TextExample(name, (b"",), fault)
        for begin, end in cut(text, 0, len(text)):
            yield TextExample(name, (text[begin:end],))

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        return {"targets": "text", "name": "name", "record_fault": "record_fault"}

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        names = ("name", "text", "record_fault")
        return generated_source(self.splits, names, self.records)

    def _parts(self) -> tuple[RecordText, ...]:
        return (RecordText(self.text, "record_files.text"),)

    def _identity(self, values: tuple[bytes]) -> bytes:
        return values[0]

    def _wanted(self) -> str:
        return f"record_files.text = {self.text!r}"
