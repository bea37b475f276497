"""When a checkpoint is due by the time that has passed since the last one."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

# Processes compare their clocks so often in an interval.
_CHECKS, _MOST_STEPS = 50, 10_000


class SaveClock:
    """Tells after which steps a checkpoint is due by time; all processes agree.

    A run of one process looks at its clock after every step. In one of several the
    first process decides, and tells the others, with the number of steps until they ask
    it again: some fiftieth of the interval, so that no step waits for the exchange.

    Args:
      minutes: between the beginnings of two saves; None if none is due by time.
      now: seconds of a clock that never goes back.
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
        """A save has begun, or the run: time counts from here."""
        self._saved_at = self._now()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`; every process asks after every step."""
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
