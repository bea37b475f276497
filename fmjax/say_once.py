"""Lines on standard error that are printed once per process."""

import functools
import sys


@functools.cache
def say_once(line: str) -> None:
    """Prints a line to standard error, unless this process has printed it before."""
    print(line, file=sys.stderr, flush=True)
