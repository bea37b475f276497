"""Errors that are the user's to mend: one clear message, no traceback, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Names the gin binding or file at fault, what was found and what was expected."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A clause for an error message that names the nearest known name, or ''."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
