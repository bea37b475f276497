"""Records of TFRecord and ArrayRecord files: serialized tf.train.Examples.

So TensorFlow Datasets stores what it has prepared. A feature of one value is that
value, of several a list; bytes stay bytes.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.data_files import local_file
from fmjax.data.sources.record_formats.byte_stream import last_suffix, open_bytes
from fmjax.data.sources.record_formats.json_records import Found
from fmjax.data.sources.record_formats.parts import Field, pick
from fmjax.errors import UserError

# Bytes of a record of TFRecord besides its content: length and two checksums.
_FRAME = 16
# How many ArrayRecords are read at once.
_BATCH = 64
# The magic number in the last block of an ArrayRecord file, as protobuf writes it
# (`RiegeliPostscript` in array_record/cpp/layout.proto).
_MAGIC, _BLOCK = b"\xde\xc0\xeb\xfe\x84\xce\xc3\xc9q", 1 << 16


def tfrecords(file: Path, fields: tuple[Field, ...]) -> Iterator[Found]:
    """Yields (number from 0, values) of the records of a TFRecord file.

    It may be compressed by gzip, as its suffix says.

    Raises:
      UserError: the file is truncated or damaged.
    """
    import_seqio()
    import tensorflow as tf

    file = local_file(file)
    kind = "GZIP" if last_suffix(file) == ".gz" else ""
    number = end = 0
    try:
        # Its checksums are compared.
        for content in tf.data.TFRecordDataset(str(file), kind).as_numpy_iterator():
            yield number, _values(content, fields)
            number += 1
            end += _FRAME + len(content)
        # TensorFlow ignores the beginning of a frame at the end of a file.
        reason = "" if end == _content_size(file, end) else "it ends within a record"
    except tf.errors.OpError as error:
        reason = error.message.split("}} ")[-1].split(" [Op:")[0]
    if reason:
        raise UserError(
            f"{file}, after {number} records, cannot be read, so it is truncated, "
            f"damaged or no TFRecord file: {' '.join(reason.split()):.200}."
        )


def array_records(
    file: Path, fields: tuple[Field, ...], start: int = 0, stop: int | None = None
) -> Iterator[Found]:
    """Yields (number from 0, values) of the records of an ArrayRecord file.

    A record that cannot be read is a corrupt one.

    Args:
      file: the file.
      fields: the fields.
      start: number of the first record.
      stop: number of the record to end before; None for the end of the file.

    Raises:
      UserError: the file is truncated or damaged.
    """
    reader = _open_array_record(file)
    try:
        last = reader.num_records() if stop is None else stop
        for begin in range(start, last, _BATCH):
            contents = _read(reader, begin, min(begin + _BATCH, last))
            for number, content in enumerate(contents, begin):
                if isinstance(content, bytes):
                    content = _values(content, fields)
                yield number, content
    finally:
        _close(reader)


def count_array_records(file: Path) -> int:
    """Number of records of an ArrayRecord file; raises a UserError if damaged."""
    reader = _open_array_record(file)
    try:
        return reader.num_records()
    finally:
        _close(reader)


def _content_size(file: Path, expected: int) -> int:
    """Bytes of a file; of its content, if it is compressed by gzip."""
    size = file.stat().st_size
    if last_suffix(file) != ".gz":
        return size
    with open(file, "rb") as content:
        content.seek(max(0, size - 4))
        # Gzip's trailer has the size modulo 2^32, if it is not of several parts.
        if content.read() == (expected % 2**32).to_bytes(4, "little"):
            return expected
    with open_bytes(file, is_text=False) as stream:
        return sum(map(len, iter(lambda: stream.read(1 << 20), b"")))


def _open_array_record(file: Path):
    from array_record.python.array_record_module import ArrayRecordReader

    file = local_file(file)  # Its library reads no others.
    try:
        reader = ArrayRecordReader(str(file), "readahead_buffer_size:0")
        count = reader.num_records()
    except Exception as error:  # It has several, of its own.
        raise _not_array_record(file, str(error) or "it has no postscript") from error
    if not count:
        # The library takes truncated files for empty ones.
        with open(file, "rb") as content:
            content.seek(max(0, file.stat().st_size - _BLOCK))
            if _MAGIC not in content.read():
                _close(reader)
                raise _not_array_record(file, "it has no postscript")
    return reader


def _close(reader) -> None:
    with contextlib.suppress(Exception):  # It raises what was wrong with records.
        reader.close()


def _not_array_record(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file} is truncated, damaged or no ArrayRecord file: "
        f"{' '.join(reason.split()):.200}."
    )


def _read(reader, start: int, stop: int) -> list[bytes | BadRecord]:
    try:
        return reader.read(start, stop)
    except Exception as error:
        if stop == start + 1:
            return [BadRecord(f"cannot be read: {' '.join(str(error).split()):.100}")]
    return [one for n in range(start, stop) for one in _read(reader, n, n + 1)]


def _values(content: bytes, fields: tuple[Field, ...]) -> list[Any] | BadRecord:
    try:
        example = _example_class().FromString(content)
    except Exception as error:  # Errors of protobuf depend on its implementation.
        return BadRecord(f"is no tf.train.Example: {error!s:.100}")
    names = {field.name for field in fields}
    record = {
        # What no field needs is named alone, for messages.
        name: _value(feature) if name in names else None
        for name, feature in example.features.feature.items()
    }
    try:
        return [pick(record, field) for field in fields]
    except BadRecord as error:
        return error


def _value(feature) -> Any:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values[0] if len(values) == 1 else (values or None)


@functools.cache
def _example_class():
    import_seqio()
    import tensorflow as tf

    return tf.train.Example
