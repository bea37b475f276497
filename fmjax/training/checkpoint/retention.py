"""Which checkpoints are kept, as policies of Orbax, beside the newest ones."""

import contextlib
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.errors import UserError
from fmjax.storage.objects import os_errors
from fmjax.storage.paths import as_path, is_bucket

REGISTRY = "registry.json"  # written by fmjax.run.registry


class KeepBest:
    """Keeps the checkpoints of the best values of a metric.

    Used instead of Orbax's `BestN`, which loses the values when a run is restarted.

    Args:
      values: by step; may be added to later.
      count: number of checkpoints.
      mode: whether the lowest value ("min") or the highest ("max") is the best.
    """

    def __init__(self, values: dict[int, float], count: int, mode: str = "min"):
        self._values, self._count = values, count
        self._sign = 1 if mode == "min" else -1

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """Whether each checkpoint is one of the best."""
        del context
        steps = [info.step for info in checkpoints]
        known = [step for step in steps if step in self._values]
        best = sorted(known, key=lambda step: self._sign * self._values[step])
        best = best[: self._count]
        return [step in best for step in steps]


class KeepRegistered:
    """Keeps the checkpoints that the run's registry names.

    These are the one that has a stage, and those of which other runs read parameters,
    as long as the other runs exist.

    Args:
      run_dir: the run directory.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._run_dir = run_dir
        self._steps: list[int] = []

    def read(self) -> None:
        """Reads which checkpoints they are; every process of a run must call it."""
        # The file is written whole, but a file system may fail for a moment.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
            self._steps = _registered_steps(self._run_dir)
        if jax.process_count() > 1:
            # All processes must delete the same checkpoints.
            count = _of_first_process(np.array([len(self._steps)]))[0]
            steps = np.resize(np.array([*self._steps, 0]), count)
            self._steps = _of_first_process(steps).tolist() if count else []

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """Whether each checkpoint is one of them."""
        del context
        return [info.step in self._steps for info in checkpoints]


def _of_first_process(values: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(values.astype(np.int32)))


def _registered_steps(run_dir: pathlib.Path) -> list[int]:
    """The steps in registry.json; raises an error if it is unreadable or damaged."""
    try:
        with os_errors(run_dir):
            content = json.loads((run_dir / REGISTRY).read_bytes())
    except FileNotFoundError:
        return []
    if not isinstance(content, dict):
        return []
    steps = [content.get("step")]
    for other in content.get("read_by", ()):
        places = [as_path(other["run"])]
        if "relative" in other:
            places.append(run_dir / other["relative"])
        if any(is_bucket(place) or place.is_dir() for place in places):
            steps.append(other["step"])
    return [s for s in steps if isinstance(s, int) and 0 <= s < 2**31]
