"""Which checkpoints are kept, as policies of Orbax, beside the newest ones."""

import contextlib
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.storage.objects import os_errors

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


class KeepPromoted:
    """Keeps the checkpoint that has a stage in the run's registry.

    Args:
      run_dir: the run directory.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._run_dir = run_dir
        self._step: int | None = None

    def read(self) -> None:
        """Reads which checkpoint it is; every process of a run must call it."""
        # The file is written whole, but a file system may fail for a moment.
        with contextlib.suppress(OSError, ValueError):
            self._step = _promoted_step(self._run_dir)
        if jax.process_count() > 1:
            # All processes must delete the same checkpoints.
            known = np.int32(-1 if self._step is None else self._step)
            agreed = int(multihost_utils.broadcast_one_to_all(known))
            self._step = None if agreed < 0 else agreed

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """Whether each checkpoint is the promoted one."""
        del context
        return [info.step == self._step for info in checkpoints]


def _promoted_step(run_dir: pathlib.Path) -> int | None:
    """The step in registry.json; raises an OSError or ValueError if unreadable."""
    try:
        with os_errors(run_dir):
            content = json.loads((run_dir / REGISTRY).read_bytes())
    except FileNotFoundError:
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return step if isinstance(step, int) and 0 <= step < 2**31 else None
