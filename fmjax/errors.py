"""Errors that a user can mend: one clear message, no traceback, exit code 2."""

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Names the gin binding or file at fault, what was found and what was expected."""


def require(configurable: Any, field: str, holds: bool, expected: str) -> None:
    """Raises a UserError that names `gin_name.field` and its value unless `holds`.

    Args:
      configurable: the instance whose field is checked, usually in `__post_init__`.
      field: its name.
      holds: what was checked.
      expected: completes "expected …" in the message.
    """
    if not holds:
        value = getattr(configurable, field)
        raise UserError(
            f"{configurable.gin_name}.{field} = {value!r}: expected {expected}."
        )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks like a misspelling of `name`, or None.

    Names that merely share letters ("mpnet" and "opt", "mamba" and "lamb") are none.
    """
    by_lower = {}
    for candidate in known:
        by_lower.setdefault(candidate.lower(), candidate)
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def suggest(name: str, known: Iterable[str]) -> str:
    """A clause for an error message that names the nearest known name, or ''."""
    found = nearest(name, known)
    return f" Did you mean {found!r}?" if found else ""


def refuse_scheme(value: str | os.PathLike, binding: str) -> None:
    """Raises a UserError for an address such as gs://bucket/folder.

    Files are read and written through the operating system only, which would take
    `gs:` for the name of a local folder.

    Args:
      value: what should be a path.
      binding: the gin field, option or environment variable that it was given by.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(value)):
        raise UserError(
            f"{binding} = {os.fspath(value)!r}: expected a path of a mounted file "
            "system; addresses of buckets and other SCHEME:// are not supported."
        )
