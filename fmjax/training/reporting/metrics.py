"""Metrics of a run: metrics.jsonl, TensorBoard events, trackers."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmjax.storage.paths import as_path
from fmjax.training.reporting import json_lines
from fmjax.training.reporting.trackers.outbox import Outbox

if TYPE_CHECKING:
    import pandas

FILE = "metrics.jsonl"
PICTURES = "pictures"
TEXTS = "texts.jsonl"
FIELDS = {"step": int, "split": str}


class MetricWriter:
    """Appends to a run's metrics, from the step that it starts at.

    Args:
      run_dir: the run directory.
      start: the step that the run resumes from; lines and events of later steps are
        deleted.
      outboxes: of the run's trackers; the caller closes them.
    """

    def __init__(
        self, run_dir: pathlib.Path, start: int, outboxes: Sequence[Outbox] = ()
    ):
        from fmjax.training.reporting.tensorboard import TensorBoard

        self._run_dir = run_dir
        for name in (FILE, TEXTS):
            drop_after(run_dir / name, start)
        # Unbuffered: Python's buffer would lose bytes that could not be written.
        self._file = (run_dir / FILE).open("ab", buffering=0)
        self._unwritten = b""
        self._tensorboard = TensorBoard(run_dir, start)
        self._outboxes = outboxes

    def write(self, step: int, split: str, values: dict[str, Any]) -> OSError | None:
        """Writes a line: step, split, the values, and the time in seconds since 1970.

        Values that are not finite become null.

        Returns:
          None, or the error that kept it from being written; the line is then kept and
          written with a later one.
        """
        line = {"step": step, "split": split} | {
            name: None if isinstance(v, float) and not math.isfinite(v) else v
            for name, v in values.items()
        }
        stamped = line | {"time": round(time.time(), 3)}
        self._unwritten += json.dumps(stamped).encode() + b"\n"
        scalars = {
            f"{split}/{name}": v
            for name, v in line.items()
            if isinstance(v, (int, float)) and name != "step"
        }
        for name, value in scalars.items():
            self._tensorboard.add_scalar(step, name, value)
        for outbox in self._outboxes:
            outbox.log(step, scalars)
        return self._flush()

    def write_text(self, step: int, name: str, text: str) -> None:
        """Writes a text to TensorBoard and the run directory's texts.jsonl."""
        line = {"step": step, "split": "validation", "name": name, "text": text}
        # Not worth ending a run: a text can be made again from a checkpoint.
        with contextlib.suppress(OSError), (self._run_dir / TEXTS).open("a") as file:
            file.write(json.dumps(line | {"time": round(time.time(), 3)}) + "\n")
        self._tensorboard.add_text(step, name, text)

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, 3], to TensorBoard and the run directory."""
        from PIL import Image

        file = self._run_dir / PICTURES / f"{name}_{step:06d}.png"
        # Not worth ending a run: a picture can be made again from a checkpoint.
        with contextlib.suppress(OSError):
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(file)
        self._tensorboard.add_image(step, name, picture)

    def flush(self) -> None:
        """Writes what is held back for TensorBoard."""
        self._tensorboard.flush()

    def close(self) -> OSError | None:
        """Flushes and closes everything; returns the error if not all was written."""
        error = self._flush()
        self._file.close()
        self._tensorboard.close()
        return error

    def _flush(self) -> OSError | None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            return error
        return None


class NoWriter:
    """The metric writer of all processes but the first; writes nothing."""

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Does nothing."""

    def write_text(self, step: int, name: str, text: str) -> None:
        """Does nothing."""

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def drop_after(path: pathlib.Path, step: int) -> None:
    """Deletes the lines of a metrics file past `step`, and an incomplete last line.

    The file is changed in place, which works on a full disk.
    """
    if not path.exists():
        return
    kept = end = 0
    with path.open("r+b") as file:
        for line in file:
            end += len(line)
            found = next(json_lines.parsed([line], FIELDS), None)
            if found and found["step"] > step:
                break
            if line.endswith(b"\n"):
                kept = end
        file.truncate(kept)


def read(run_dir: pathlib.Path, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, of one split or of all.

    Raises:
      FileNotFoundError: the run has no metrics.
    """
    path = as_path(run_dir) / FILE
    if not path.exists():
        raise FileNotFoundError(path)
    every = json_lines.read(path, FIELDS)
    return [line for line in every if split is None or line["split"] == split]


def frame(run_dir: pathlib.Path) -> "pandas.DataFrame":
    """The lines of a run's metrics.jsonl as a frame, in order.

    A column for each field, NaN where a line does not have it or it was not finite;
    `frame[frame.split == "validation"]` has those of validation. Empty without metrics.
    """
    import pandas

    lines = json_lines.read(as_path(run_dir) / FILE, FIELDS)
    found = pandas.DataFrame.from_records(list(lines))
    return found if len(found) else pandas.DataFrame(columns=[*FIELDS])


def read_texts(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """The texts of a run's evaluations: step, name, text and time, in order."""
    fields = FIELDS | {"name": str, "text": str}
    return list(json_lines.read(as_path(run_dir) / TEXTS, fields))


def values(run_dir: pathlib.Path, split: str, name: str) -> dict[int, float]:
    """The finite values of a metric of a split, by step; of several the first.

    At the last step a validation of some batches may come before that of all.
    """
    run_dir = as_path(run_dir)
    lines = read(run_dir, split) if (run_dir / FILE).exists() else []
    found: dict[int, float] = {}
    for line in lines:
        if isinstance(value := line.get(name), (int, float)):
            found.setdefault(line["step"], value)
    return found
