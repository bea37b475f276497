"""Records of Parquet and of Arrow's IPC formats (stream and file)."""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fmjax.data.sources.data_files import (
    file_size,
    file_version,
    open_binary,
    open_ranges,
)
from fmjax.data.sources.record_formats.json_records import Found
from fmjax.data.sources.record_formats.parts import Field, MissingField
from fmjax.errors import UserError
from fmjax.storage.paths import is_bucket

# Bytes of the rows that are decoded at once, and their maximum number.
_BATCH_BYTES, _BATCH_ROWS = 1 << 22, 1024
_PARQUET = b"PAR1"
# Each range of a row group decodes the group from its beginning, so a file is divided
# into so many ranges, or a group into so many if there are many groups.
_RANGES, _RANGES_OF_GROUP = 64, 8


def parquet_rows(
    file: Path, fields: tuple[Field, ...], start: int = 0, stop: int | None = None
) -> Iterator[Found]:
    """Yields (row from 0, values) of a Parquet file; strings are bytes.

    Row groups are read from their beginning.

    Args:
      file: the file.
      fields: the fields.
      start: first row.
      stop: the row to end before; None for the end of the file.

    Raises:
      MissingField: there is no column of the name of a field.
      UserError: the file is not Parquet, truncated or damaged, or a column is of
        another type.
    """
    row = 0
    with (
        _explained(file, lambda: f", after row {row}"),
        _open_parquet(file) as content,
    ):
        columns = _columns(file, content.schema_arrow, fields)
        stop = content.metadata.num_rows if stop is None else stop
        for group in range(content.num_row_groups):
            metadata = content.metadata.row_group(group)
            if row >= stop or row + metadata.num_rows <= start:
                row += metadata.num_rows
                continue
            batches = content.iter_batches(
                _rows_at_once(metadata.total_byte_size, metadata.num_rows),
                row_groups=[group],
                columns=[".".join(path) for path in columns if path],
                use_threads=False,
            )
            for batch in batches:
                yield from _numbered(batch, columns, row, start, stop)
                row += batch.num_rows
                if row >= stop:
                    return


def arrow_rows(
    file: Path, fields: tuple[Field, ...], start: int = 0, stop: int | None = None
) -> Iterator[Found]:
    """Yields (row from 0, values) of Arrow's stream or file format, as for Parquet.

    Arguments as of `parquet_rows`. The stream format is read from its beginning; of
    the file format the rows of all batches are counted once in a process.

    Raises:
      MissingField: there is no column of the name of a field.
      UserError: the file is not Arrow, truncated or damaged, or a column is of another
        type.
    """
    row = 0
    with _explained(file, lambda: f", after row {row}"), _open_arrow(file) as reader:
        columns = _columns(file, reader.schema, fields)
        row, batches = _batches_from(file, reader, start)
        for batch in batches:
            # Arrow ends the process when it slices an array of negative length.
            batch.validate()
            if row + batch.num_rows > start:
                step = _rows_at_once(batch.nbytes, batch.num_rows)
                for at in range(0, batch.num_rows, step):
                    piece = batch.slice(at, step)
                    yield from _numbered(piece, columns, row + at, start, stop)
            row += batch.num_rows
            if stop is not None and row >= stop:
                return


def row_ranges(file: Path, is_parquet: bool, size: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of ranges of rows that can be read on their own.

    They are row groups of Parquet and batches of Arrow's file format, several in one
    if they are small, or parts of one that is large, whose number is bounded.

    Args:
      file: the file.
      is_parquet: whether it is Parquet.
      size: bytes of a range in the file, approximately.
    """
    with _explained(file):
        if is_parquet:
            with _open_parquet(file) as content:
                metadata = content.metadata
                groups = range(metadata.num_row_groups)
                counts = [metadata.row_group(group).num_rows for group in groups]
        else:
            with _open_arrow(file) as reader:
                if isinstance(reader, pa.RecordBatchFileReader):
                    counts = _rows_of_batches(file)
                else:
                    counts = [sum(batch.num_rows for batch in _batches(reader))]
                    size = file_size(file)
    most = max(_RANGES // max(len(counts), 1), _RANGES_OF_GROUP)
    total = sum(counts)
    rows = max(1, total * size // max(file_size(file), 1))
    start = stop = 0
    for count in counts:
        end = stop + count
        if count >= 2 * rows:
            if start < stop:
                yield start, stop
            number = min(-(-count // rows), most)
            edges = [stop + count * n // number for n in range(number + 1)]
            yield from itertools.pairwise(edges)
            start = end
        elif end - start >= rows:
            yield start, end
            start = end
        stop = end
    if start < stop:
        yield start, stop


def count_rows(file: Path, is_parquet: bool) -> int:
    """Number of rows of a file."""
    with _explained(file):
        if is_parquet:
            with _open_parquet(file) as content:
                return content.metadata.num_rows
        with _open_arrow(file) as reader:
            if isinstance(reader, pa.RecordBatchFileReader):
                return sum(_rows_of_batches(file))
            return sum(batch.num_rows for batch in _batches(reader))


def read_metadata(file: Path, is_parquet: bool) -> dict[bytes, bytes]:
    """What a file's schema says beside its columns."""
    with _explained(file):
        if is_parquet:
            with _open_parquet(file) as content:
                return content.schema_arrow.metadata or {}
        with _open_arrow(file) as reader:
            return reader.schema.metadata or {}


@contextlib.contextmanager
def _open_parquet(file: Path) -> Iterator[pq.ParquetFile]:
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(open_ranges(file))
        head = handle.read(4)
        size = handle.seek(0, 2)
        handle.seek(max(0, size - 4))
        tail = handle.read()
        if head != _PARQUET:
            raise UserError(
                f"{file} is not Parquet: it begins with {head!r}, expected "
                f"{_PARQUET!r}."
            )
        if size < 12 or tail != _PARQUET:
            raise UserError(
                f"{file} is truncated: it begins as Parquet, but its {size:,} bytes do "
                f"not end with {_PARQUET!r}. Copy or download it again."
            )
        # Columns are read a page at a time rather than whole.
        content = pq.ParquetFile(
            handle if is_bucket(file) else file,
            buffer_size=1 << 20,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        yield stack.enter_context(content)


@contextlib.contextmanager
def _open_arrow(
    file: Path, options: pa.ipc.IpcReadOptions | None = None
) -> Iterator[Any]:
    if file_size(file) == 0:
        raise UserError(f"{file} is empty; expected Arrow.")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_arrow_bytes(file, open_ranges))
        is_file = source.read(6) == b"ARROW1"
        if is_file:
            opened = pa.ipc.open_file
        else:
            opened = pa.ipc.open_stream
            source = stack.enter_context(_arrow_bytes(file, open_binary))
        source.seek(0)
        with opened(source, options=options) as reader:
            yield reader


@contextlib.contextmanager
def _arrow_bytes(file: Path, open_object) -> Iterator[pa.NativeFile]:
    """A file as Arrow reads it; of a bucket opened by `open_object`."""
    if is_bucket(file):
        with open_object(file) as handle, pa.PythonFile(handle, "r") as source:
            yield source
        return
    with pa.memory_map(str(file)) as source:
        yield source


def _batches(reader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


def _batches_from(
    file: Path, reader, start: int
) -> tuple[int, Iterator[pa.RecordBatch]]:
    """The batches from that of the row `start` onwards, and the first one's first row.

    All batches of the stream format.
    """
    if start == 0 or not isinstance(reader, pa.RecordBatchFileReader):
        return 0, _batches(reader)
    row = number = 0
    for count in _rows_of_batches(file):
        if row + count > start:
            break
        row, number = row + count, number + 1
    return row, map(reader.get_batch, range(number, reader.num_record_batches))


def _rows_of_batches(file: Path) -> tuple[int, ...]:
    """The number of rows of each batch of Arrow's file format.

    Only a batch tells its rows, and one that is compressed is decompressed for it, so
    a process does this once. Of a file in a bucket one column alone is read.
    """
    return _counted(file, *file_version(file))


@functools.lru_cache(maxsize=1000)
def _counted(file: Path, size: int, modified: int | str) -> tuple[int, ...]:
    del size, modified  # only keys of the cache
    options = None
    # Of mapped files Arrow copies what it reads where columns are chosen.
    if is_bucket(file):
        with _open_arrow(file) as reader:
            # A column of numbers is a small part of a file.
            widths = {
                number: field.type.bit_width
                for number, field in enumerate(reader.schema)
                if pa.types.is_primitive(field.type)
            }
        narrowest = [min(widths, key=widths.__getitem__)] if widths else []
        options = pa.ipc.IpcReadOptions(included_fields=narrowest)
    with _open_arrow(file, options) as reader:
        return tuple(batch.num_rows for batch in _batches(reader))


def _rows_at_once(size: int, rows: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _columns(
    file: Path, schema: pa.Schema, fields: tuple[Field, ...]
) -> list[list[str]]:
    """The path of every field: its column, and fields of structures in it.

    The path of an optional field that the file does not have is empty.
    """
    found = []
    for name, kinds, is_optional in fields:
        place = _find(schema, name)
        if place is None:
            if not is_optional:
                raise MissingField(name, _names(schema))
            found.append([])
            continue
        path, kind = place
        if _kind_of(kind) not in (*kinds, "nulls"):
            raise UserError(
                f"{file}: the column {name!r} is of type {kind}; expected "
                f"{' or '.join(kinds)}."
            )
        found.append(path)
    return found


def _kind_of(kind: pa.DataType) -> str:
    """What a column holds, as in `Field.kinds`; "others" if it is none of these."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    for name, holds in (
        ("nulls", pa.types.is_null),
        ("strings", _is_text),
        ("integers", pa.types.is_integer),
        ("floats", pa.types.is_floating),
        ("booleans", pa.types.is_boolean),
        ("lists", _is_list),
        ("objects", pa.types.is_struct),
    ):
        if holds(kind):
            return name
    return "others"


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def _find(fields, name: str) -> tuple[list[str], pa.DataType] | None:
    """The path and type of a column, or of a field of a structure: "meta.text"."""
    for field in fields:
        if field.name == name:
            return [name], field.type
        if name.startswith(f"{field.name}.") and pa.types.is_struct(field.type):
            inside = _find(field.type, name.removeprefix(f"{field.name}."))
            if inside is not None:
                return [field.name, *inside[0]], inside[1]
    return None


def _names(fields, prefix: str = "") -> Iterator[str]:
    for field in fields:
        yield prefix + field.name
        if pa.types.is_struct(field.type):
            yield from _names(field.type, f"{prefix}{field.name}.")


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or _is_binary(kind)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _numbered(
    batch: pa.RecordBatch,
    columns: list[list[str]],
    first: int,
    start: int,
    stop: int | None,
) -> Iterator[Found]:
    """Yields (row, values) of the rows in a range of a batch that begins at `first`."""
    begin = max(start - first, 0)
    end = batch.num_rows if stop is None else min(stop - first, batch.num_rows)
    if begin < end:
        rows = _values(batch.slice(begin, end - begin), columns)
        yield from enumerate(rows, first + begin)


def _values(batch: pa.RecordBatch, columns: list[list[str]]) -> Iterator[list[Any]]:
    arrays = []
    for path in columns:
        if not path:
            arrays.append([None] * batch.num_rows)
            continue
        top, *inside = path
        array = batch.column(top)
        for name in inside:
            array = pc.struct_field(array, name)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if _is_text(array.type):
            array = array.cast(pa.large_binary())
        # Damaged offsets would be read outside of the file.
        array.validate(full=True)
        arrays.append(array.to_pylist())
    return map(list, zip(*arrays))


@contextlib.contextmanager
def _explained(file: Path, place=lambda: "") -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file} cannot be read: {error.strerror}.") from error
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file}{place()} cannot be read, so it is truncated, damaged or of "
            f"another format than its suffix says: {reason:.300}"
        ) from error
