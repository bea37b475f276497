"""Checkpoint interval in time: when the next save is due."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

# In a run of several processes, the clock is checked this often in an interval, and at
# least once in this many steps.
_CHECKS, _MOST_STEPS = 50, 10_000


class SaveClock:
    """Decides after which steps a checkpoint is due by time, equally in all processes.

    A run of one process checks its clock after every step. In a run of several, the
    first process decides and broadcasts its decision, with the number of steps until
    the next check: about a fiftieth of the interval, so that few steps wait for it.

    Args:
      minutes: between the starts of two saves; None for no saves by time.
      now: seconds of a monotonic clock.
    """

    def __init__(
        self, minutes: float | None, now: Callable[[], float] = time.monotonic
    ):
        self._interval = None if minutes is None else 60 * minutes
        self._now = now
        self._saved_at = self._checked_at = now()
        self._checked_step: int | None = None
        self._next_check = 0

    def saved(self) -> None:
        """Restarts the interval; called when a save starts."""
        self._saved_at = self._now()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`; every process must call it after every step."""
        if self._interval is None:
            return False
        if jax.process_count() == 1:
            return self._now() - self._saved_at >= self._interval
        if step < self._next_check:
            return False
        due, steps = multihost_utils.broadcast_one_to_all(np.array(self._decide(step)))
        self._next_check = step + int(steps)
        return bool(due)

    def _decide(self, step: int) -> tuple[int, int]:
        """(whether a save is due before the next check, steps until that check)."""
        now, between = self._now(), self._interval / _CHECKS
        steps = 1
        if self._checked_step is not None and step > self._checked_step:
            seconds = (now - self._checked_at) / (step - self._checked_step)
            steps = int(np.clip(between / max(seconds, 1e-6), 1, _MOST_STEPS))
        self._checked_step, self._checked_at = step, now
        due = now + between - self._saved_at >= self._interval
        return int(due), steps
