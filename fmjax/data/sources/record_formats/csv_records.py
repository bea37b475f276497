"""Records of CSV and TSV: a line of names, then a record for each row."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fmjax.data.records import BadRecord
from fmjax.data.sources.record_formats.byte_stream import ByteStream
from fmjax.data.sources.record_formats.json_records import RECORD_BYTES, Found
from fmjax.data.sources.record_formats.parts import Field, MissingField
from fmjax.errors import UserError


class CsvOptions(NamedTuple):
    """How rows of CSV and TSV files are read.

    Attributes:
      columns: names of the columns of files without a line of names.
      separator: the character between fields; by the suffix if None.
      quotes: whether a field may be in double quotes.
      owner: gin name of the source that has these as fields, for messages.
    """

    columns: tuple[str, ...] | None = None
    separator: str | None = None
    quotes: bool = True
    owner: str = "record_files"


def csv_rows(
    file: Path,
    stream: ByteStream,
    fields: tuple[Field, ...],
    separator: str,
    options: CsvOptions,
) -> Iterator[Found]:
    """Yields (first line of the row from 1, values) of every row that is not blank.

    Args:
      file: the file, for messages.
      stream: the opened file.
      fields: the fields.
      separator: the separator, unless the options have one.
      options: how rows are read.

    Raises:
      MissingField: there is no column of the name of a field.
      UserError: a quoted field has no end, or the separator is another.
    """
    # The limit is one of the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), RECORD_BYTES))
    separator = options.separator or separator
    rows = _rows(file, stream, separator, options)
    names = options.columns
    if names is None:
        first = next(rows, None)
        if first is None:
            return
        _, names = first
        if isinstance(names, BadRecord):
            raise UserError(f"{file}: the line of names {names}.")
        _check_separator(file, names, fields, separator, options.owner)
    positions = [_position(names, field) for field in fields]
    for line, row in rows:
        if not isinstance(row, BadRecord) and len(row) != len(names):
            row = BadRecord(f"has {len(row)} columns; expected {len(names)}")
        if isinstance(row, BadRecord):
            yield line, row
        else:
            yield line, [None if n is None else row[n] for n in positions]


def _check_separator(
    file: Path,
    names: list[str],
    fields: tuple[Field, ...],
    separator: str,
    owner: str,
) -> None:
    """Refuses a line of names that another separator divides into the fields."""
    if len(names) > 1:
        return
    needed = {field.name for field in fields if not field.is_optional}
    for other in ",;\t|":
        if needed <= {*names[0].split(other)} and other in names[0]:
            raise UserError(
                f"{file}: the line of names {names[0]!r} has no {separator!r}; bind "
                f"{owner}.separator={other!r}."
            )


def _position(names: list[str], field: Field) -> int | None:
    try:
        return list(names).index(field.name)
    except ValueError:
        if field.is_optional:
            return None
        raise MissingField(field.name, names) from None


def _rows(
    file: Path, stream: ByteStream, separator: str, options: CsvOptions
) -> Iterator[tuple[int, list[str] | BadRecord]]:
    quoting = csv.QUOTE_MINIMAL if options.quotes else csv.QUOTE_NONE
    lines = _lines(file, stream)
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line or "end of data" in str(error):
                raise UserError(
                    f"{file}, line {line}: a quoted field begins here that does not "
                    f"end well ({error}, line {reader.line_num}). If quotes are "
                    "ordinary characters of this file, bind "
                    f"{options.owner}.quotes=False."
                ) from None
            row = BadRecord(f"is not a row of quoted fields: {error}")
        if row:
            yield line, row


def _lines(file: Path, stream: ByteStream) -> Iterator[str]:
    number = 0
    while line := stream.readline(RECORD_BYTES):
        number += 1
        if len(line) == RECORD_BYTES and not line.endswith(b"\n"):
            raise UserError(
                f"{file}, line {number} has more than {RECORD_BYTES >> 20} MiB; "
                "expected rows of text."
            )
        # Some files end lines in CR alone.
        parts = line.splitlines(keepends=True) if b"\r" in line else (line,)
        for part in parts:
            yield part.decode(errors="surrogateescape")
