"""Commands of a cluster's tools: found, run, and their refusals told."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from fmjax.errors import UserError

PAUSE_SECONDS = 30.0


def quoted(words: str | Iterable[str]) -> str:
    """A word, or several, as a shell reads them back."""
    return shlex.quote(words) if isinstance(words, str) else shlex.join(words)


def find_tool(name: str, where: str) -> str:
    """The path of a tool.

    Args:
      name: of the tool.
      where: a sentence on where it is to be had.

    Raises:
      UserError: it is not on the PATH.
    """
    path = shutil.which(name)
    if path is None:
        raise UserError(
            f"{name} is not on the PATH. {where} --dry_run prints what would be "
            "submitted."
        )
    return path


def patiently(words: Sequence[str], attempts: int = 10) -> str:
    """`output_of` a command that asks a server, which may be away for minutes.

    Raises:
      UserError: the command fails so many times in a row.
    """
    for attempt in range(1, attempts):
        try:
            return output_of(words)
        except UserError as error:
            print(f"{error}; asking again ({attempt} of {attempts})", file=sys.stderr)
            time.sleep(PAUSE_SECONDS)
    return output_of(words)


def output_of(words: Sequence[str], seconds: float = 300.0) -> str:
    """What a command prints.

    Raises:
      UserError: it fails, or takes longer; the message has what it said.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"{quoted(words)}: no answer within {seconds:.0f} s.") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise UserError(f"{quoted(words)}: exit code {done.returncode}: {said}")
    return done.stdout
