"""JSON Lines files, whose last line may be incomplete after a crash."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fmjax.storage.objects import os_errors


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
