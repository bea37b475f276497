"""The source `record_pairs`: pairs of texts, from two fields of records."""

import dataclasses
from collections.abc import Iterator

from fmjax.configurable import configurable
from fmjax.data.sources.division import TextExample
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.record_text import RecordText
from fmjax.data.sources.record_source import RecordSource
from fmjax.data.sources.source import DOCUMENT_BYTES, Document, generated_source
from fmjax.errors import UserError


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
    """

    inputs: str = "inputs"
    targets: str = "targets"
    negatives: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._parts()

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

    def _settings(self) -> tuple:
        # Caches of earlier versions, which had no negatives, stay valid.
        return tuple(each for each in super()._settings() if each != ("negatives", ()))

    def _identity(self, values: tuple[bytes, ...]) -> bytes:
        inputs, targets, *_ = values
        return b"%d %s%s" % (len(inputs), inputs, targets)

    def _wanted(self) -> str:
        names = ("inputs", "targets", *["negatives"] * bool(self.negatives))
        return ", ".join(f"record_pairs.{n} = {getattr(self, n)!r}" for n in names)
