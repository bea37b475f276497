"""Errors that a user can correct: one clear message, no traceback, exit code 2."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class UserError(ValueError):
    """A wrong binding, argument or file.

    The message names the gin binding or file, the value found and what was expected.
    """


def require(configurable: Any, field: str, holds: bool, expected: str) -> None:
    """Checks a field of a configurable, usually in its `__post_init__`.

    Args:
      configurable: the instance whose field is checked.
      field: the name of the field.
      holds: whether the value is valid.
      expected: the valid values, as in "at least 1".

    Raises:
      UserError: `holds` is False: "GIN_NAME.FIELD = VALUE: expected EXPECTED."
    """
    if not holds:
        value = getattr(configurable, field)
        raise UserError(
            f"{configurable.gin_name}.{field} = {value!r}: expected {expected}."
        )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name of which `name` is probably a misspelling, or None.

    The similarity must be at least 0.7 (`difflib.get_close_matches`), so that other
    words with some of the same letters ("mpnet" and "opt", "mamba" and "lamb") do not
    match.
    """
    by_lower = {}
    for candidate in known:
        by_lower.setdefault(candidate.lower(), candidate)
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def suggest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean NAME?" with the nearest known name, or "" if none is near."""
    found = nearest(name, known)
    return f" Did you mean {found!r}?" if found else ""


@contextlib.contextmanager
def explained_out_of_memory(
    remedies: str = "", held: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Context manager and decorator: explains that the memory was too little.

    Other errors pass unchanged.

    Args:
      remedies: sentences on what takes less memory.
      held: gives a sentence on what the memory holds; called after such an error.

    Raises:
      UserError: a MemoryError was raised inside, or JAX's RESOURCE_EXHAUSTED for the
        memory of a device.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # JaxRuntimeError is a RuntimeError.
        text = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in text:
            raise
        asked = re.search(r"[\d.]+ ?(?:[KMGT]i?B|bytes)", text)
        note = f"{asked[0]} were asked for" if asked else text[:200]
        parts = (f"out of memory{note and f' ({note})'}.", held(), remedies)
        raise UserError(" ".join(filter(None, parts))) from error
