"""Starts of a run: what each was started with and on, in starts.jsonl."""

import contextlib
import json
import pathlib
from typing import Any

FILE = "starts.jsonl"
FIELDS = {"began": (int, float), "step": int, "devices": int}


def note(run_dir: pathlib.Path, line: dict[str, Any]) -> None:
    """Appends a start; an error of the file system is not raised.

    Args:
      run_dir: the run directory.
      line: `began` (seconds since 1970), `step` (updates done), `devices` (their
        number) and what else is known of the start.
    """
    with contextlib.suppress(OSError), (run_dir / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
