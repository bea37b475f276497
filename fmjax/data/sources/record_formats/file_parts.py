"""Parts of record files: of JSON lines, Parquet, Arrow and ArrayRecord."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fmjax.data.sources.data_files import file_size, open_binary
from fmjax.data.sources.division import FilePart
from fmjax.data.sources.record_formats.byte_stream import (
    COMPRESSIONS,
    last_suffix,
    open_bytes,
)
from fmjax.data.sources.record_formats.formats import (
    ARRAY_RECORD,
    COLUMNS,
    LINES,
    PARQUET,
    count_records,
    format_of,
)
from fmjax.storage.paths import is_bucket

_CHUNK = 1 << 20
# What is fetched of an object to find where a line ends.
_LINE_BYTES = 1 << 14


def file_parts(
    file: Path, size: int | None, numbered: bool, form: str | None = None
) -> Iterator[FilePart]:
    """The parts of a file; see `Division.parts`.

    Compressed files, CSV, JSON lists, tar, TFRecord and Arrow's stream format are read
    from their beginning, so they are one part.

    Args:
      file: the file.
      size: bytes of a part, as in `Division.parts`.
      numbered: whether lines are counted, as in `Division.parts`. Those of objects of a
        bucket never are: all of them would be fetched for it.
      form: its format, as `format_of`, if its name does not tell it.

    Raises:
      UserError: the file is truncated, damaged or not of its format.
    """
    form = format_of(file) if form is None else form
    total = file_size(file)
    if size is not None and size < total:
        if form in LINES and last_suffix(file) not in COMPRESSIONS:
            numbered = numbered and not is_bucket(file)
            yield from _line_ranges(file, total, size, numbered)
            return
        if form in (*COLUMNS, *ARRAY_RECORD):
            ranges = list(_row_ranges(file, form, total, size))
            rows = max(sum(stop - start for start, stop in ranges), 1)
            for start, stop in ranges:
                share = (stop - start) / rows
                yield FilePart(file, start, stop, start, round(total * share))
            return
    yield FilePart(file, 0, None, 1, total)


def joined_parts(parts: Sequence[FilePart]) -> list[FilePart]:
    """Parts, with those of Parquet and Arrow that follow one another as one.

    A part of a row group decodes the group from its beginning.
    """
    found: list[FilePart] = []
    for part in parts:
        last = found[-1] if found else None
        follows = last is not None and (last.file, last.stop) == (part.file, part.start)
        if follows and last_suffix(part.file) in COLUMNS:
            size = last.size + part.size
            found[-1] = last._replace(stop=part.stop, size=size)
        else:
            found.append(part)
    return found


def _row_ranges(
    file: Path, form: str, total: int, size: int
) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of ranges of the rows or records of a file."""
    if form in COLUMNS:
        # It takes a third of a second to import.
        from fmjax.data.sources.record_formats.column_records import row_ranges

        yield from row_ranges(file, form in PARQUET, size)
        return
    count = count_records(file, form)
    step = max(1, count * size // total)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _line_ranges(
    file: Path, total: int, size: int, numbered: bool
) -> Iterator[FilePart]:
    start, first = 0, 1
    with open_bytes(file):
        pass  # Refuses what is no text.
    with open_binary(file, first=_LINE_BYTES) as content:
        while start < total:
            content.seek(min(start + size, total))
            while (found := content.readline(_CHUNK)) and not found.endswith(b"\n"):
                pass
            stop = content.tell()
            yield FilePart(file, start, stop, first if numbered or not start else 0,
                       stop - start)  # fmt: skip
            if numbered:
                content.seek(start)
                first += _count_lines(content, stop - start)
            start = stop


def _count_lines(content, size: int) -> int:
    count = 0
    while size > 0 and (chunk := content.read(min(_CHUNK, size))):
        count += chunk.count(b"\n")
        size -= len(chunk)
    return count
