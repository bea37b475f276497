"""The source `record_files`: documents from JSON, CSV, Parquet and Arrow files."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.division import Part, TextExample
from fmjax.data.sources.file_digest import digest_file, digest_files
from fmjax.data.sources.find_files import find_files
from fmjax.data.sources.record_formats.csv_records import CsvOptions
from fmjax.data.sources.record_formats.file_parts import file_parts
from fmjax.data.sources.record_formats.formats import (
    RECORDS,
    RecordOptions,
    estimate_size,
    first_text,
    format_of,
    read_texts,
)
from fmjax.data.sources.record_formats.record_text import RecordText
from fmjax.data.sources.source import Document, check_split, generated_source
from fmjax.data.sources.split_names import files_by_split
from fmjax.data.sources.text_reader import cut
from fmjax.data.sources.text_split import hash_threshold
from fmjax.errors import UserError, require, suggest
from fmjax.say_once import say_once

_DEFAULT_FRACTION = 0.1
# How many files, spread over all, the size of the text is estimated from.
_SAMPLED_FILES = 8
_SPLITS = ("names", "hash")


@configurable("record_files")
@dataclasses.dataclass(frozen=True)
class RecordFiles:
    """Texts of records: JSON lines, JSON, CSV, TSV, Parquet and Arrow files.

    The format follows from the suffix: .jsonl or .ndjson; .json, a list of objects, an
    object that has one such list, or JSON lines; .csv and .tsv; these also with .gz,
    .bz2, .xz or .zst; .parquet; .arrow, .feather or .ipc, in Arrow's stream or file
    format. So folders of `datasets.save_to_disk` and Parquet trees of the Hugging Face
    Hub are read as they are. A record without the text, or with another type, counts as
    corrupt (`data.max_corrupt_fraction`). A text of more than 4 MiB is cut into several
    documents, at line ends if possible.

    Attributes:
      files: a file, a folder (its files of these formats at any depth), a glob (`**`
        matches folders at any depth), or a tuple of these.
      text: the field that holds the text, or a template: '{title}: {body}'.
        'meta.text' is the field `text` of `meta`. Fields are strings; in a template
        also integers.
      validation_files: files of the validation split, in the same form as `files`.
        Files that are in both are excluded from training.
      validation_fraction: share of the records that is held out, by a hash of their
        text, so that equal texts are in the same split; 0 for no validation split. If
        None, files named after the validation split are held out, or 0.1 if there are
        none.
      split: 'names': if names tell the splits, as `train-00000-of-00002.parquet` and
        `test/0.jsonl` do, only files of `train` are trained on, and `validation` is
        the validation split; files of `test` are left out. 'hash': names tell nothing.
      split_seed: seed of the hash.
      columns: names of the columns of CSV and TSV files without a line of names.
      separator: character between the fields of CSV and TSV files; if None, a comma or
        a tab by the suffix.
      quotes: whether fields of CSV and TSV files may be in double quotes; if not, these
        are characters like others.
    """

    files: str | tuple[str, ...] = path()
    text: str = "text"
    validation_files: str | tuple[str, ...] | None = path(None)
    validation_fraction: float | None = None
    split: str = "names"
    split_seed: int = 0
    columns: tuple[str, ...] | None = None
    separator: str | None = None
    quotes: bool = True

    def __post_init__(self):
        if self.split not in _SPLITS:
            raise UserError(
                f"record_files.split = {self.split!r}: expected one of {_SPLITS}."
                + suggest(self.split, _SPLITS)
            )
        seed_valid = 0 <= self.split_seed < 2**63
        require(self, "split_seed", seed_valid, "0 <= seed < 2**63")
        one = self.separator is None or len(self.separator) == 1
        one = one and self.separator not in ('"', "\n", "\r")
        require(self, "separator", one, "one character, such as ';' or '\\t'")
        RecordText(self.text, "record_files.text")
        if self.validation_fraction is None:
            return
        if self.validation_files is not None:
            raise UserError(
                "record_files.validation_files and record_files.validation_fraction "
                "are both bound; expected at most one of them."
            )
        fraction_valid = 0 <= self.validation_fraction < 1
        require(self, "validation_fraction", fraction_valid, "0 <= fraction < 1")

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` unless its share is 0."""
        return ("train",) if self.validation_fraction == 0 else ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's files and of the settings that make documents.

        Raises:
          UserError: the files have no text, or files of columns have no such column.
        """
        files, fraction = self._files(split)
        self._check(files)
        if fraction:
            self._threshold(files, fraction)  # Raises if the files cannot be split.
        cut = f"hash {fraction} {self.split_seed} {split}" if fraction else "all"
        key = ("record_files", self.text, self._csv, cut, digest_files(files))
        return xxhash.xxh3_128_hexdigest(repr(key).encode())

    def documents(self, split: str) -> Iterator[Document]:
        """The texts of the valid records of a split, without blank ones."""
        for name, text, fault in self.records(split):
            if not fault and text.strip():
                yield name, text

    def records(self, split: str) -> Iterator[tuple[str, bytes, str]]:
        """Yields (name, text, fault) of the records of a split.

        The fault says what is wrong with a corrupt record; it is "" for others. Corrupt
        records belong to the training split if the validation split is held out by a
        hash.

        Raises:
          UserError: a file is damaged, truncated or not of its format.
        """
        division = self.division(split)
        for part in division.parts():
            for name, (text,), fault in division.read(part):
                yield name, text, fault

    def division(self, split: str) -> "RecordDivision":
        """The split in parts.

        Raises:
          UserError: there are too few records to hold some out.
        """
        files, fraction = self._files(split)
        if not fraction:
            return RecordDivision(files, self._options, None)
        threshold = self._threshold(files, fraction)

        def is_own(text: bytes, fault: str) -> bool:
            held_out = not fault and self._hash(text) < threshold
            return held_out == (split == "validation")

        return RecordDivision(files, self._options, is_own)

    def size(self, split: str) -> int:
        """Approximate bytes of the split's text, from the first texts of some files."""
        files, fraction = self._files(split)
        step = max(1, len(files) // _SAMPLED_FILES)
        sampled = files[::step]
        found = sum(estimate_size(file, self._options) for file in sampled)
        read = sum(file.stat().st_size for file in sampled)
        total = found * sum(file.stat().st_size for file in files) / max(read, 1)
        share = fraction if split == "validation" else 1 - fraction
        return round(total * (share if fraction else 1))

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        return {"targets": "text", "name": "name", "record_fault": "record_fault"}

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        names = ("name", "text", "record_fault")
        return generated_source(self.splits, names, self.records)

    @property
    def _csv(self) -> CsvOptions:
        return CsvOptions(self.columns, self.separator, self.quotes)

    @functools.cached_property
    def _options(self) -> RecordOptions:
        return RecordOptions(RecordText(self.text, "record_files.text"), self._csv)

    def _files(self, split: str) -> tuple[list[Path], float]:
        """The files that a split is in, and the share that is held out of them."""
        check_split("record_files", split, self.splits)
        named = None
        if self.validation_files is None or split == "train":
            files = find_files(self.files, "record_files.files", RECORDS)
            named = self._named(files)
            files = files if named is None else named["train"]
        if self.validation_files is not None:
            binding = "record_files.validation_files"
            held_out = find_files(self.validation_files, binding, RECORDS)
            if split == "validation":
                return held_out, 0
            return self._without(files, held_out), 0
        if self.validation_fraction is None and named and named["validation"]:
            return named[split], 0
        fraction = self.validation_fraction
        return files, _DEFAULT_FRACTION if fraction is None else fraction

    def _named(self, files: list[Path]) -> dict[str, list[Path]] | None:
        """The files by the splits that their names tell; None if they tell none."""
        if self.split == "hash":
            return None
        named = files_by_split(files, f"record_files.files = {self.files!r}")
        if named is None or self.validation_files is not None:
            return named
        unused = (
            {"test"} if self.validation_fraction is None else {"test", "validation"}
        )
        for split in sorted(unused):
            if named[split]:
                say_once(
                    f"record_files.files = {self.files!r}: {len(named[split])} of "
                    f"{len(files)} files are of the {split} split by their names "
                    f"(such as {named[split][0]}); they are left out. To validate on "
                    "them, bind record_files.validation_files."
                )
        return named

    def _without(self, files: list[Path], held_out: list[Path]) -> list[Path]:
        digests = {_digest(file) for file in held_out}
        rest = [file for file in files if _digest(file) not in digests]
        if not rest:
            raise UserError(
                f"record_files.files = {self.files!r}: all of these files are also in "
                "record_files.validation_files, so there is nothing to train on."
            )
        if len(rest) < len(files):
            say_once(
                f"{len(files) - len(rest)} of the {len(files)} files of "
                f"record_files.files = {self.files!r} are also in "
                "record_files.validation_files; they are excluded from training"
            )
        return rest

    def _check(self, files: list[Path]) -> None:
        """Refuses files without text, before they are read as a whole."""
        for file in files:
            format_of(file)
        firsts = [first_text(file, self._options) for file in files]
        good = next((f for f, first in zip(files, firsts) if first.has_text), None)
        binding = f"record_files.text = {self.text!r}"
        if good is None:
            missing = next((first for first in firsts if first.missing), firsts[0])
            file = files[firsts.index(missing)]
            count = f"{len(files)} files" if len(files) > 1 else "the file"
            raise UserError(
                f"{binding}: there is no text in the first records of {count}: "
                f"{file}{missing.fault}"
            )
        for file, first in zip(files, firsts):
            if first.missing:
                raise UserError(f"{binding}: {good} has it, but {file}{first.fault}")

    def _hash(self, text: bytes) -> int:
        return xxhash.xxh3_64_intdigest(text, self.split_seed)

    def _threshold(self, files: list[Path], fraction: float) -> int:
        def hashes() -> Iterator[int]:
            for file in files:
                for _, text, fault in read_texts(file, self._options):
                    if not fault and text.strip():
                        yield self._hash(text)

        try:
            return hash_threshold(hashes(), fraction)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"record_files.validation_fraction = {fraction} of "
                f"record_files.files = {self.files!r}: {error}, so none can be held "
                "out. Bind record_files.validation_files, or "
                "record_files.validation_fraction=0 for no validation split."
            ) from None


class RecordDivision:
    """A split of record files; see `Division`."""

    def __init__(
        self,
        files: list[Path],
        options: RecordOptions,
        is_own: Callable[[bytes, str], bool] | None,
    ):
        """Reads nothing yet.

        Args:
          files: all files that the split is in, in order.
          options: how records are read.
          is_own: whether a record's text and fault belong to the split; None if all do.
        """
        self._files, self._options, self._is_own = files, options, is_own
        self.root = Path(os.path.commonpath([file.parent for file in files]))

    def parts(self, size: int | None = None, numbered: bool = True) -> list[Part]:
        """The parts; see `Division` and `file_parts`."""
        return [
            part for file in self._files for part in file_parts(file, size, numbered)
        ]

    def read(self, part: Part) -> Iterator[TextExample]:
        """The records of a part, also corrupt and blank ones."""
        name = os.path.relpath(part.file, self.root)
        for place, text, fault in read_texts(part.file, self._options, part):
            if self._is_own is not None and not self._is_own(text, fault):
                continue
            if fault or not text:
                yield TextExample(f"{name}, {place}", (b"",), fault)
            for begin, end in cut(text, 0, len(text)):
                yield TextExample(f"{name}, {place}", (text[begin:end],))


def _digest(file: Path) -> str:
    try:
        return digest_file(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
