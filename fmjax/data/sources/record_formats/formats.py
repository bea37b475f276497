"""Reading the texts of record files: the format follows from the suffix."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmjax.data.records import BadRecord
from fmjax.data.sources.division import Part, numbered_place
from fmjax.data.sources.find_files import FileKind
from fmjax.data.sources.record_formats.byte_stream import (
    COMPRESSIONS,
    ByteStream,
    open_bytes,
)
from fmjax.data.sources.record_formats.csv_records import CsvOptions, csv_rows
from fmjax.data.sources.record_formats.json_records import (
    Found,
    json_lines,
    json_list,
)
from fmjax.data.sources.record_formats.record_text import MissingField, RecordText
from fmjax.errors import UserError, suggest

LINES = (".jsonl", ".ndjson")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet",)
ARROW = (".arrow", ".feather", ".ipc")
_TEXT_FORMATS = (*LINES, ".json", *_SEPARATORS)
_FORMATS = (*_TEXT_FORMATS, *PARQUET, *ARROW)

RECORDS = FileKind(
    (*_FORMATS, *(form + end for form in _TEXT_FORMATS for end in COMPRESSIONS)),
    # Files that `datasets` keeps beside the data, and its caches.
    left_out=(
        "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
        "cache-*.arrow", "tmp*.arrow",
    ),
)  # fmt: skip

# How many records of a file are looked at before it is read, at most.
_FIRST = 1000
# Bytes of text from which the size of the rest of a file is estimated.
_SAMPLE_BYTES = 1 << 22


class RecordOptions(NamedTuple):
    """How records are read.

    Attributes:
      text: the text of a record.
      csv: how rows of CSV and TSV files are read.
    """

    text: RecordText
    csv: CsvOptions


class TextOfRecord(NamedTuple):
    """The text of a record.

    Attributes:
      place: "line 3", "row 3" or "record 3" of the file; lines from 1, others from 0.
      text: its text in UTF-8.
      fault: what is wrong with the record; "" if it is valid.
    """

    place: str
    text: bytes
    fault: str


def format_of(file: Path) -> str:
    """The suffix of the format, without that of the compression.

    Raises:
      UserError: the suffix is unknown.
    """
    name = file.name.lower()
    inner, compressed = name, ""
    for suffix in COMPRESSIONS:
        if name.endswith(suffix):
            inner, compressed = name.removesuffix(suffix), suffix
    form = Path(inner).suffix
    if form in (_TEXT_FORMATS if compressed else _FORMATS):
        return form
    if form in _FORMATS:
        raise UserError(
            f"{file} is compressed as a whole; expected {form}, which is compressed "
            f"inside. Decompress it, so that its name is {file.stem}."
        )
    raise UserError(
        f"{file} is of no known format of records: its name ends in "
        f"{form or 'no suffix'!r}; expected one of {', '.join(_FORMATS)}, and of these "
        f"{', '.join(_TEXT_FORMATS)} also with {', '.join(COMPRESSIONS)}."
        + suggest(form, _FORMATS)
    )


def read_texts(
    file: Path, options: RecordOptions, part: Part | None = None
) -> Iterator[TextOfRecord]:
    """Yields the text of every record of a file, in order; memory stays bounded.

    Args:
      file: the file.
      options: how records are read.
      part: the part of the file to read; None for all of it.

    Raises:
      MissingField: a file of columns does not have a field.
      UserError: the file is truncated, damaged or not of its format.
    """
    form = format_of(file)
    if form in _TEXT_FORMATS:
        with open_bytes(file) as stream:
            if part is None or part.stop is None:
                yield from _texts_of(file, stream, form, options)
                return
            if part.start:
                stream.seek(part.start)
            size = part.stop - stream.tell()
            records = json_lines(stream, options.text.fields, size)
            for number, values in records:
                place = numbered_place("line", part, number - 1)
                yield _text(place, values, options.text)
        return
    # It takes a third of a second to import.
    from fmjax.data.sources.record_formats import column_records

    read = column_records.arrow_rows
    if form in PARQUET:
        read = column_records.parquet_rows
    rows = (0, None) if part is None else (part.start, part.stop)
    yield from _texts("row", read(file, options.text, *rows), options.text)


class FirstText(NamedTuple):
    """What the first records of a file have.

    Attributes:
      has_text: whether one of them has text.
      fault: the first one's place and fault, if none has text, to follow the file's
        name in a message.
      missing: the fault of a file of columns that does not have a field.
    """

    has_text: bool
    fault: str
    missing: MissingField | None = None


def first_text(file: Path, options: RecordOptions) -> FirstText:
    """Looks at the first records of a file, until one has text.

    Raises:
      UserError: as in `read_texts`.
    """
    count, fault = 0, " has no records"
    try:
        for place, text, wrong in read_texts(file, options):
            count += 1
            if text.strip():
                return FirstText(True, "")
            if count == 1:
                fault = f", {place} {wrong or 'is empty'}"
            if count == _FIRST:
                break
    except MissingField as error:
        return FirstText(False, f" {error}", error)
    return FirstText(False, fault)


def estimate_size(file: Path, options: RecordOptions) -> int:
    """Approximate bytes of text of a file, from its first 4 MiB of text."""
    stat = file.stat()
    return _estimate(file, stat.st_size, stat.st_mtime_ns, options)


@functools.lru_cache(maxsize=1000)
def _estimate(file: Path, size: int, modified: int, options: RecordOptions) -> int:
    del modified  # only a key of the cache
    form = format_of(file)
    if form not in _TEXT_FORMATS:
        from fmjax.data.sources.record_formats.column_records import count_rows

        rows, found, is_whole = _sample(read_texts(file, options))
        if is_whole:
            return found
        return found * count_rows(file, form in PARQUET) // max(rows, 1)
    with open_bytes(file) as stream:
        _, found, is_whole = _sample(_texts_of(file, stream, form, options))
        return found if is_whole else found * size // max(stream.file_position(), 1)


def _sample(texts: Iterator[TextOfRecord]) -> tuple[int, int, bool]:
    """The first records, bytes of their text, and whether they are all."""
    count = found = 0
    for _, text, _ in texts:
        count, found = count + 1, found + len(text)
        if found >= _SAMPLE_BYTES:
            return count, found, False
    return count, found, True


def _texts_of(
    file: Path, stream: ByteStream, form: str, options: RecordOptions
) -> Iterator[TextOfRecord]:
    fields = options.text.fields
    unit = "line"
    if form in LINES:
        records = json_lines(stream, fields)
    elif form in _SEPARATORS:
        records = csv_rows(file, stream, fields, _SEPARATORS[form], options.csv)
    else:
        unit, records = json_list(file, stream, fields)
    return _texts(unit, records, options.text)


def _texts(
    unit: str, records: Iterator[Found], text: RecordText
) -> Iterator[TextOfRecord]:
    for number, values in records:
        yield _text(f"{unit} {number}", values, text)


def _text(place: str, values: list[Any] | BadRecord, text: RecordText) -> TextOfRecord:
    if isinstance(values, BadRecord):
        return TextOfRecord(place, b"", str(values))
    try:
        return TextOfRecord(place, text.of(values), "")
    except BadRecord as error:
        return TextOfRecord(place, b"", str(error))
