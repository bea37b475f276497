"""Events of a run (started, resumed, save failed, …): events.jsonl."""

import json
import pathlib
import time
from typing import Any

from fmjax.storage.paths import as_path
from fmjax.training.reporting import json_lines

FILE = "events.jsonl"
FIELDS = {"time": (int, float), "kind": str, "step": int, "text": str}


class Events:
    """Appends to a run's events.jsonl.

    Args:
      run_dir: the run directory.
      writes: whether this process writes; only one process of a run should.
    """

    def __init__(self, run_dir: pathlib.Path, writes: bool):
        self._file = run_dir / FILE
        self._writes = writes

    def note(self, kind: str, step: int, text: str = "") -> None:
        """Adds an event; an error of the file system is not raised."""
        if not self._writes:
            return
        event = {"time": time.time(), "kind": kind, "step": step, "text": text}
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError:
            return


def read(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a run, in order."""
    return list(json_lines.read(as_path(run_dir) / FILE, FIELDS))
