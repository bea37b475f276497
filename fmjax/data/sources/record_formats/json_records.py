"""Records of JSON lines and of JSON: a list of objects, or an object that holds one."""

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from fmjax.data.records import BadRecord
from fmjax.data.sources.data_files import file_version
from fmjax.data.sources.record_formats.byte_stream import ByteStream, open_bytes
from fmjax.data.sources.record_formats.parts import Field, describe, pick
from fmjax.errors import UserError

# Maximum size of a record; longer lines count as corrupt.
RECORD_BYTES = 1 << 26
# (line, or index in the list, or name; values of the fields, or what is wrong)
Found = tuple[int | str, list[Any] | BadRecord]


def json_lines(
    stream: ByteStream, fields: tuple[Field, ...], size: float = math.inf
) -> Iterator[Found]:
    """Yields (line from 1, values) of every line that is not blank.

    Args:
      stream: the opened file.
      fields: the fields.
      size: how many bytes to read, up to the end of a line.
    """
    number = 0
    while size > 0 and (line := stream.readline(RECORD_BYTES + 1)):
        number += 1
        size -= len(line)
        if len(line) > RECORD_BYTES and not line.endswith(b"\n"):
            size -= _skip_line(stream)
            megabytes = RECORD_BYTES >> 20
            yield number, BadRecord(f"is too long; expected at most {megabytes} MiB")
        elif not line.isspace():
            yield number, _values(line.rstrip(), fields)


def json_list(
    file: Path, stream: ByteStream, fields: tuple[Field, ...]
) -> tuple[str, Iterator[Found]]:
    """The records of a .json file, which may hold JSON lines too.

    Lists are streamed. An object is a record itself if it has the first field; else it
    must hold one list of objects.

    Args:
      file: the file, for messages and to look for the list of an object.
      stream: the opened file.
      fields: the fields.

    Returns:
      "line" or "record", and (line from 1, or index from 0; values).

    Raises:
      UserError: the file is not valid JSON or has no list of records.
    """
    begin = _first_byte(stream)
    if begin == b"":
        return "line", iter(())
    if begin == b"[":
        return "record", _listed(file, stream, "item", fields)
    if begin != b"{":
        raise UserError(
            f"{file} begins with {begin!r}; expected a list of objects, an object with "
            "one, or a line of JSON for each record."
        )
    record, is_only = _first_line(file)
    if record is not None and not is_only:
        return "line", json_lines(stream, fields)
    names, lists = _outline(file, *file_version(file))
    first = fields[0].name
    is_record = any(first == n or first.startswith(f"{n}.") for n in names)
    if is_record or not lists:
        return "record", iter([(0, _picked(_whole(file, stream), fields))])
    if len(lists) > 1:
        raise UserError(
            f"{file} is an object with several lists of objects, "
            f"{', '.join(map(repr, lists))}; expected one. Write the list to a file of "
            "its own."
        )
    return "record", _listed(file, stream, f"{lists[0]}.item", fields)


def _values(line: bytes, fields: tuple[Field, ...]) -> list[Any] | BadRecord:
    try:
        return _picked(json.loads(line.decode()), fields)
    except UnicodeDecodeError as error:
        at = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        return BadRecord(f"is not UTF-8 ({at})")
    except json.JSONDecodeError as error:
        return BadRecord(f"is not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:  # gigantic numbers; deep lists
        return BadRecord(f"is not JSON: {error}")


def _picked(record: Any, fields: tuple[Field, ...]) -> list[Any] | BadRecord:
    if not isinstance(record, dict):
        return BadRecord(f"is {describe(record)}; expected an object")
    try:
        return [pick(record, field) for field in fields]
    except BadRecord as error:
        return error


def _listed(
    file: Path, stream: ByteStream, prefix: str, fields: tuple[Field, ...]
) -> Iterator[Found]:
    number = 0
    with _explained(file, lambda: f", record {number}"):
        for record in ijson.items(stream, prefix, use_float=True):
            yield number, _picked(record, fields)
            number += 1


def _first_byte(stream: ByteStream) -> bytes:
    """The first byte that is not white space, which stays in the stream."""
    while head := stream.peek(1):
        text = head.lstrip()
        stream.read(len(head) - len(text))
        if text:
            return text[:1]
    return b""


def _first_line(file: Path) -> tuple[dict | None, bool]:
    """The object on the first line, or None; whether the file has nothing else."""
    with open_bytes(file) as stream:
        _first_byte(stream)
        line = stream.readline(RECORD_BYTES)
        is_only = _first_byte(stream) == b""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None, is_only
    return record if isinstance(record, dict) else None, is_only


def _whole(file: Path, stream: ByteStream) -> Any:
    text = stream.read(RECORD_BYTES + 1)
    if len(text) > RECORD_BYTES:
        raise UserError(
            f"{file} is one object of more than {RECORD_BYTES >> 20} MiB without a "
            "list of objects; expected a list, or a line of JSON for each record."
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}.") from None


@functools.lru_cache(maxsize=100_000)
def _outline(
    file: Path, size: int, modified: int | str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All keys of the object in a file, and the keys of its lists of objects.

    Raises:
      UserError: the file is not JSON.
    """
    del size, modified  # only keys of the cache
    names, lists, depth, before = [], [], 0, ""
    with open_bytes(file) as stream, _explained(file):
        for event, value in ijson.basic_parse(stream, use_float=True):
            if event == "map_key" and depth == 1:
                names.append(value)
            elif event in ("start_map", "start_array"):
                if event == "start_map" and depth == 2 and before == "start_array":
                    lists.append(names[-1])
                depth += 1
            elif event in ("end_map", "end_array"):
                depth -= 1
            before = event
    return tuple(names), tuple(lists)


@contextlib.contextmanager
def _explained(file: Path, place=lambda: "") -> Iterator[None]:
    try:
        yield
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file}{place()} is not JSON: {reason:.200}. A line for each record can "
            "be read without it: JSON lines, in a .jsonl file."
        ) from None


def _skip_line(stream: ByteStream) -> int:
    """Reads to the end of a line; returns how many bytes."""
    size = 0
    while part := stream.readline(RECORD_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size
