"""The base class of sources of records: their files, splits and digests."""

import abc
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import path
from fmjax.data.records import BadRecord
from fmjax.data.sources.data_files import file_size
from fmjax.data.sources.division import FilePart
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.file_splits import files_of_split
from fmjax.data.sources.find_files import find_files
from fmjax.data.sources.record_division import RecordDivision
from fmjax.data.sources.record_formats.csv_records import CsvOptions
from fmjax.data.sources.record_formats.formats import (
    FORMAT_NAMES,
    RECORDS,
    RecordOptions,
    estimate_size,
    first_record,
    format_of,
    read_records,
)
from fmjax.data.sources.record_formats.parts import Part
from fmjax.data.sources.text_split import check_hold_out, hash_threshold
from fmjax.errors import UserError, require, suggest

# How many files, spread over all, the size of the content is estimated from.
_SAMPLED_FILES = 8
_SPLITS = ("names", "hash")


@dataclasses.dataclass(frozen=True)
class RecordSource(abc.ABC):
    """Records of files, of which a subclass takes some parts.

    The format follows from the suffix: .jsonl or .ndjson; .json, a list of objects, an
    object that has one such list, or JSON lines; .csv and .tsv; .tar, WebDataset's
    archives, whose fields are the endings of names; these also with .gz, .bz2, .xz or
    .zst; .parquet; .arrow, .feather or .ipc, in Arrow's stream or file format;
    .tfrecord and .array_record, with tf.train.Examples.

    Attributes:
      files: a file, a folder (its files of these formats at any depth), a glob (`**`
        matches folders at any depth, `{000..012}` numbers), or a tuple of these.
      validation_files: files of the validation split, in the same form as `files`.
        Files that are in both are excluded from training.
      validation_fraction: share of the records that is held out, by a hash of their
        content, so that equal ones are in the same split; 0 for no validation split. If
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
      format: the format of all files, whatever their names end in: one of the suffixes
        above without its dot, such as 'jsonl'. None: that of their suffixes.
    """

    files: str | tuple[str, ...] = path()
    _: dataclasses.KW_ONLY
    validation_files: str | tuple[str, ...] | None = path(None)
    validation_fraction: float | None = None
    split: str = "names"
    split_seed: int = 0
    columns: tuple[str, ...] | None = None
    separator: str | None = None
    quotes: bool = True
    format: str | None = None

    def __post_init__(self):
        check_hold_out(self, _SPLITS)
        if self.format not in (None, *FORMAT_NAMES):
            raise UserError(
                f"{self.gin_name}.format = {self.format!r}: expected one of "
                f"{', '.join(FORMAT_NAMES)}, or None."
                + suggest(self.format, FORMAT_NAMES)
            )
        one = self.separator is None or len(self.separator) == 1
        one = one and self.separator not in ('"', "\n", "\r")
        require(self, "separator", one, "one character, such as ';' or '\\t'")

    @abc.abstractmethod
    def _parts(self) -> tuple[Part, ...]:
        """What is taken from a record; raises a UserError for a wrong binding."""

    @abc.abstractmethod
    def _identity(self, values: tuple) -> bytes:
        """What equal records of both splits must not share, from the parts' values."""

    @abc.abstractmethod
    def _wanted(self) -> str:
        """The bindings that name the parts, for messages: "record_files.text = 'a'"."""

    def _checked(self, values: tuple) -> tuple:
        """The parts' values, checked further; raises BadRecord."""
        return values

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` unless its share is 0."""
        return ("train",) if self.validation_fraction == 0 else ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's files and of the settings that make examples.

        Raises:
          UserError: the files have no content, or a file of columns lacks a field.
        """
        files, fraction = self._files(split)
        self._check(files)
        if fraction:
            self._threshold(files, fraction)  # Raises if the files cannot be split.
        cut = f"hash {fraction} {self.split_seed} {split}" if fraction else "all"
        settings = (self.columns, self.separator, self.quotes)
        settings += () if self.format is None else (self.format,)
        key = (self.gin_name, self._settings(), settings, cut, digest_files(files))
        return xxhash.xxh3_128_hexdigest(repr(key).encode())

    def _settings(self) -> tuple:
        """The values of the fields of the subclass, which examples depend on."""
        own = [f.name for f in dataclasses.fields(self)]
        common = {f.name for f in dataclasses.fields(RecordSource)}
        return tuple((name, getattr(self, name)) for name in own if name not in common)

    def found(self, split: str) -> Iterator[tuple[str, tuple, str]]:
        """Yields (name, values of the parts, fault) of the records of a split.

        The fault says what is wrong with a corrupt record, which has no values; it is
        "" for others. Corrupt records belong to the training split if the validation
        split is held out by a hash.

        Raises:
          UserError: a file is damaged, truncated or not of its format.
        """
        division = self.divided(split)
        for part in division.parts():
            yield from division.found(part)

    def divided(self, split: str) -> RecordDivision:
        """The split in parts.

        Raises:
          UserError: there are too few records to hold some out.
        """
        files, fraction = self._files(split)
        threshold = self._threshold(files, fraction) if fraction else None
        return RecordDivision(self, split, files, threshold, self._form)

    def size(self, split: str) -> int:
        """Approximate bytes of a split's content, from the first of some files."""
        files, fraction = self._files(split)
        step = max(1, len(files) // _SAMPLED_FILES)
        sampled = files[::step]
        found = sum(estimate_size(file, self._options) for file in sampled)
        read = sum(file_size(file) for file in sampled)
        total = found * sum(file_size(file) for file in files) / max(read, 1)
        share = fraction if split == "validation" else 1 - fraction
        return round(total * (share if fraction else 1))

    @property
    def _csv(self) -> CsvOptions:
        return CsvOptions(self.columns, self.separator, self.quotes, self.gin_name)

    @functools.cached_property
    def _options(self) -> RecordOptions:
        return RecordOptions(self._parts(), self._csv, self._form)

    @property
    def _form(self) -> str | None:
        return None if self.format is None else f".{self.format}"

    def read_part(self, part: FilePart) -> Iterator[tuple[str, tuple, str]]:
        """Yields (place, values, fault) of the records of a part, of both splits."""
        for place, values, fault in read_records(part.file, self._options, part):
            if not fault:
                try:
                    values = self._checked(values)
                except BadRecord as error:
                    values, fault = (), str(error)
            yield place, values, fault

    def _files(self, split: str) -> tuple[list[Path], float]:
        """The files that a split is in, and the share that is held out of them."""
        return files_of_split(self, split, self._find)

    def _find(self, patterns: str | tuple[str, ...], binding: str) -> list[Path]:
        kind = RECORDS if self.format is None else RECORDS._replace(suffixes=("",))
        return find_files(patterns, binding, kind, copies=False)

    def _check(self, files: list[Path]) -> None:
        """Refuses files without content, before they are read as a whole."""
        for file in files if self.format is None else ():
            format_of(file)
        firsts = [first_record(file, self._options) for file in files]
        good = next((f for f, first in zip(files, firsts) if first.has_content), None)
        if good is None:
            missing = next((first for first in firsts if first.missing), firsts[0])
            file = files[firsts.index(missing)]
            count = f"{len(files)} files" if len(files) > 1 else "the file"
            raise UserError(
                f"{self._wanted()}: there is no content in the first records of "
                f"{count}: {file}{missing.fault}"
            )
        for file, first in zip(files, firsts):
            if first.missing:
                raise UserError(
                    f"{self._wanted()}: {good} has it, but {file}{first.fault}"
                )

    def hash_of(self, values: tuple) -> int:
        """The 64-bit hash that tells the split of a record."""
        return xxhash.xxh3_64_intdigest(self._identity(values), self.split_seed)

    def _threshold(self, files: list[Path], fraction: float) -> int:
        def hashes() -> Iterator[int]:
            for file in files:
                for _, values, fault in self.read_part(FilePart(file, 0, None, 1, 0)):
                    if not fault and self._options.size(values):
                        yield self.hash_of(values)

        try:
            return hash_threshold(hashes(), fraction)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.gin_name}.validation_fraction = {fraction} of "
                f"{self.gin_name}.files = {self.files!r}: {error}, so none can be held "
                f"out. Bind {self.gin_name}.validation_files, or "
                f"{self.gin_name}.validation_fraction=0 for no validation split."
            ) from None
