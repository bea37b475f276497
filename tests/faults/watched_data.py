"""Data that writes down what it gives, or keeps a run waiting; for configs of tests.

A config that says `import watched_data` (--trust) has every kind of data watched. The
environment says how:

    WATCHED_FOLDER  of rows-PROCESS.jsonl, a line for each row given to the run
    WATCHED_STUCK   PROCESS:BATCH, where that process stops for ever
    WATCHED_SLOW    if set, preparing never ends, after making WATCHED_FOLDER/preparing
"""

import hashlib
import json
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from fmjax.data.runtime.cached_data import CachedData

FOREVER_SECONDS = 10_000

_prepare, _train_batches = CachedData.prepare, CachedData.train_batches


def _watched_prepare(self) -> None:
    if os.environ.get("WATCHED_SLOW"):
        (_folder() / "preparing").touch()
        time.sleep(FOREVER_SECONDS)
    _prepare(self)


def _watched_batches(self, batch_size: int, rows: range, seed: int) -> "_Batches":
    return _Batches(_train_batches(self, batch_size, rows, seed), rows)


def _folder() -> pathlib.Path:
    return pathlib.Path(os.environ["WATCHED_FOLDER"])


class _Batches:
    def __init__(self, batches, rows: range):
        self._batches, self._rows = batches, rows
        self._file = _folder() / f"rows-{jax.process_index()}.jsonl"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __next__(self) -> dict[str, np.ndarray]:
        number = self.get_state()["position"]
        if os.environ.get("WATCHED_STUCK") == f"{jax.process_index()}:{number}":
            time.sleep(FOREVER_SECONDS)
        batch = next(self._batches)
        with self._file.open("a") as lines:
            for place, row in enumerate(self._rows):
                digest = hashlib.sha256()
                for name in sorted(batch):
                    digest.update(np.ascontiguousarray(batch[name][place]).tobytes())
                lines.write(json.dumps([number, row, digest.hexdigest()]) + "\n")
        return batch


def rows_of(folder: pathlib.Path) -> list[tuple[int, int, str]]:
    """(batch, row, digest) of every row that any process was given, in order."""
    files = sorted(folder.glob("rows-*.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return sorted(tuple(json.loads(line)) for line in lines)


if __name__ == "watched_data":  # imported by a config, and not by a test
    CachedData.prepare, CachedData.train_batches = _watched_prepare, _watched_batches
