"""Files of JSON lines that a killed process may have left torn."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def read(file: pathlib.Path, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of a file's lines; what is none, or lacks a field, is left out.

    Args:
      file: need not exist.
      fields: the type, or a tuple of types, that each must have by its name.
    """
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return
    yield from parsed(lines, fields)


def parsed(
    lines: Iterable[bytes], fields: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The same of lines."""
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and all(
            isinstance(value.get(name), kind) for name, kind in fields.items()
        ):
            yield value
