"""Samples of files: records from places spread evenly over them."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmjax.data.records import BadRecord
from fmjax.data.sources.division import FilePart
from fmjax.data.sources.find_files import without_shard
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.record_formats.byte_stream import COMPRESSIONS, last_suffix
from fmjax.data.sources.record_formats.csv_records import CsvOptions
from fmjax.data.sources.record_formats.file_parts import file_parts
from fmjax.data.sources.record_formats.formats import (
    ARRAY_RECORD,
    COLUMNS,
    count_records,
    field_names,
    format_of,
    whole_records,
)
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.text_reader import open_text

# In so many places, of parts of some megabyte at most.
_PLACES, _PART_BYTES = 64, 1 << 20
# Bytes of all records that are kept, approximately.
_KEPT_BYTES = 256 << 20
# A name that is a number, or as long as a text, is none: the file has no line of names.
_NO_NAME = re.compile(r"[-+]?\d+(\.\d+)?|.{61,}", re.DOTALL)


@dataclasses.dataclass
class Sample:
    """Records of some files.

    Attributes:
      records: those that are not corrupt: values by the names of fields.
      corrupt: names of corrupt ones, with the reason.
      total: number of all records of the files.
      is_exact: whether they were counted, rather than estimated.
      bytes: bytes of the files that the records take.
      kept: bytes of the memory that the records take, approximately.
    """

    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    corrupt: list[str] = dataclasses.field(default_factory=list)
    total: int = 0
    is_exact: bool = True
    bytes: int = 0
    kept: int = 0

    def keep(self, record: dict[str, Any]) -> None:
        """Adds a record that is not corrupt."""
        self.records.append(record)
        self.kept += _memory_of(record)

    @property
    def read(self) -> int:
        """Number of records that were read."""
        return len(self.records) + len(self.corrupt)


def is_csv(file: Path) -> bool:
    """Whether a file's name is that of CSV or TSV, maybe compressed."""
    suffixes = Path(without_shard(file.name.lower())).suffixes[-2:]
    return any(suffix in (".csv", ".tsv") for suffix in suffixes)


def guess_csv(file: Path) -> CsvOptions:
    """How rows of a CSV or TSV file are read, from its first line.

    If this is no line of names, columns are named column1, column2, ….
    """
    names = field_names(file, CsvOptions())
    separator = None
    if len(names) == 1:
        found = {other: names[0].count(other) for other in ",;\t|"}
        likely = max(found, key=found.__getitem__)
        if found[likely]:
            separator = likely
            names = field_names(file, CsvOptions(separator=separator))
    columns = None
    if any(_NO_NAME.fullmatch(name) for name in names):
        columns = tuple(f"column{n}" for n in range(1, len(names) + 1))
    return CsvOptions(columns, separator)


def sample_records(
    files: Sequence[Path], limit: int, csv: CsvOptions, form: str | None = None
) -> Sample:
    """Records of record files.

    Args:
      files: the files.
      limit: number of records, approximately; fewer if they are large.
      csv: how rows of CSV and TSV files are read.
      form: format of the files, as `format_of`, if their names do not tell it.

    Raises:
      UserError: a file that is read is damaged, truncated or not of its format.
    """
    size = _part_size(files)
    parts = [part for f in files for part in file_parts(f, size, True, form)]
    sample, chosen = Sample(), _evenly(parts)
    for left, part in zip(range(len(chosen), 0, -1), chosen):
        each = max(1, (limit - sample.read) // left)
        kept = sample.kept + (_KEPT_BYTES - sample.kept) // left
        _read_part(sample, part, each, kept, csv, form)
    forms = {form or format_of(file) for file in files}
    _complete(sample, files, len(chosen) == len(parts))
    if not sample.is_exact and forms <= {*COLUMNS, *ARRAY_RECORD}:
        sample.total = sum(count_records(file, format_of(file)) for file in files)
        sample.is_exact = True
    return sample


def sample_lines(files: Sequence[Path], limit: int) -> Sample:
    """Lines of text files that are not blank, as records of the field "text".

    Raises:
      UserError: a file is not text.
    """
    names = tuple(map(str, files))
    source = TextFiles(names, document="line", validation_fraction=0.0)
    division = source.division("train")
    parts = division.parts(_part_size(files), numbered=False)
    sample, chosen = Sample(), _evenly(parts)
    for left, part in zip(range(len(chosen), 0, -1), chosen):
        examples = division.read(part)
        each = max(1, (limit - sample.read) // left)
        kept = sample.kept + (_KEPT_BYTES - sample.kept) // left
        for example in itertools.islice(examples, each):
            sample.keep({"text": example.texts[0]})
            sample.bytes += len(example.texts[0]) + 1
            if sample.kept >= kept:
                break
        if next(examples, None) is not None:
            sample.is_exact = False
    _complete(sample, files, len(chosen) == len(parts))
    return sample


def sample_pairs(files: Sequence[Path], limit: int) -> Sample:
    """Lines of two parallel files, as records of the fields "inputs" and "targets".

    Raises:
      UserError: a file is not text, or they have different numbers of lines.
    """
    one, other = files
    source = PairFiles(
        str(one.parent), one.suffix[1:], other.suffix[1:], one.stem, validation=None
    )
    with open_text(one) as content:
        step = -(-content.count_lines(content.begin, content.end) // limit) or 1
    sample = Sample()
    for number, (_, inputs, targets) in enumerate(source.pairs("train")):
        sample.total += 1
        if number % step == 0:
            sample.keep({"inputs": inputs, "targets": targets})
        while sample.kept > _KEPT_BYTES and len(sample.records) > 1:
            step *= 2
            sample.records, sample.kept, records = [], 0, sample.records
            for record in records[::2]:
                sample.keep(record)
    return sample


def _read_part(
    sample: Sample,
    part: FilePart,
    limit: int,
    kept: int,
    csv: CsvOptions,
    form: str | None,
) -> None:
    with whole_records(part.file, csv, part, form) as found:
        for number, record in itertools.islice(found.records, limit):
            if isinstance(record, BadRecord):
                name = f"{part.file.name}, {found.unit} {number}"
                sample.corrupt.append(f"{name} {record}")
            else:
                sample.keep(record)
            if sample.kept >= kept:
                break
        taken = part.size
        if found.stream is not None:  # The rows of other files are counted elsewhere.
            is_compressed = last_suffix(part.file) in COMPRESSIONS
            tell = found.stream.file_position if is_compressed else found.stream.tell
            taken = min(max(tell() - part.start, 1), part.size)
        if next(found.records, None) is None:
            taken = part.size
        else:
            sample.is_exact = False
        sample.bytes += taken


def _memory_of(value: Any) -> int:
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(map(_memory_of, value.values()))
    if isinstance(value, list):
        return size + sum(map(_memory_of, value))
    return size


def _complete(sample: Sample, files: Sequence[Path], is_whole: bool) -> None:
    """Sets the number of all records."""
    sample.is_exact = sample.is_exact and is_whole
    sample.total = sample.read
    if not sample.is_exact:
        size = sum(file.stat().st_size for file in files)
        estimate = round(sample.read * size / max(sample.bytes, 1))
        sample.total = max(sample.read, estimate)


def _part_size(files: Sequence[Path]) -> int:
    total = sum(file.stat().st_size for file in files)
    return min(total // _PLACES + 1, _PART_BYTES)


def _evenly(parts: Sequence[FilePart]) -> list[FilePart]:
    if len(parts) <= 2 * _PLACES:
        return list(parts)
    chosen = np.linspace(0, len(parts) - 1, _PLACES).astype(int)
    return [parts[n] for n in dict.fromkeys(chosen.tolist())]
