"""JSON Lines files, whose last line may be incomplete after a crash."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from fmjax.storage.objects import os_errors

_CHUNK_BYTES = 2**23


def read(file: pathlib.Path, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of a file's lines, without invalid lines.

    A line is invalid if it is not a JSON object or lacks one of `fields`.

    Args:
      file: the file; if it does not exist, there are no objects.
      fields: required fields, each with its type or tuple of types.
    """
    try:
        with os_errors(file):
            lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return
    yield from parsed(lines, fields)


def parsed(
    lines: Iterable[bytes], fields: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The objects of `lines`, as for `read`."""
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and all(
            isinstance(value.get(name), kind) for name, kind in fields.items()
        ):
            yield value


class Tail:
    """Reads a growing JSON Lines file from where it stopped the last time.

    A file that was cut or replaced in between, as a resumed run cuts metrics.jsonl, is
    read anew. A last line that is not whole is left for the next time.

    Args:
      file: the file; it need not exist yet.
      fields: as for `read`.
    """

    def __init__(self, file: pathlib.Path, fields: Mapping[str, Any]):
        self._file, self._fields = file, fields
        self._offset, self._last = 0, b""

    def chunks(self) -> Iterator[tuple[bool, list[dict[str, Any]]]]:
        """Yields new objects, some at a time, with whether the file is read anew.

        If it is, objects of before no longer hold.
        """
        try:
            with os_errors(self._file), self._file.open("rb") as file:
                if not self._continues(file):
                    self._offset, self._last = 0, b""
                    yield True, []
                file.seek(self._offset)
                while whole := self._whole_lines(file.read(_CHUNK_BYTES)):
                    self._offset += len(whole)
                    lines = whole.splitlines(keepends=True)
                    # The end of a line may come alone, and is the same for all lines.
                    begun = b"" if len(lines) > 1 else self._unended
                    self._last = (begun + lines[-1])[-_CHUNK_BYTES:]
                    yield False, list(parsed(lines, self._fields))
                    file.seek(self._offset)
        except FileNotFoundError:
            if self._offset:
                self._offset, self._last = 0, b""
                yield True, []
        except OSError:
            return  # A network file system may fail for a moment.

    def _continues(self, file: BinaryIO) -> bool:
        """Whether the line that was read last is still where it was."""
        file.seek(self._offset - len(self._last))
        return file.read(len(self._last)) == self._last

    @property
    def _unended(self) -> bytes:
        return b"" if self._last.endswith(b"\n") else self._last

    def _whole_lines(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        # A line without end in so many bytes is damage; an object is whole without it.
        full = len(data) == _CHUNK_BYTES and not end
        return data if full or any(parsed([data[end:]], {})) else data[:end]
