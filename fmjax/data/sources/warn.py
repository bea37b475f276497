"""Warnings about data on standard error, each once a process."""

import functools
import sys


@functools.cache
def say_once(line: str) -> None:
    """Prints a line to standard error unless this process has done so."""
    print(line, file=sys.stderr, flush=True)
