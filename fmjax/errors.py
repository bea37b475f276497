"""Errors that are the user's to mend: one clear message, no traceback, exit code 2."""

import difflib
import os
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Names the gin binding or file at fault, what was found and what was expected."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A clause for an error message that names the nearest known name, or ''."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


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
