"""Saving with retries: a save that fails is tried again later."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.checkpoint.saved_state import in_a_line
from fmjax.training.state import State

LONGEST_PAUSE_SECONDS = 600.0


class CannotSave(RuntimeError):
    """Saving has failed so often that the run ends."""


class Saver:
    """Saves a run's checkpoints; failures are reported, counted, and tried again.

    After a failed save older checkpoints are intact and the run continues. A run of one
    process tries again after a pause that doubles with each failure, up to
    LONGEST_PAUSE_SECONDS. In a run of several processes, all of them detect a failure
    when the next save is due.

    Args:
      checkpoints: of the run.
      attempts: consecutive failures after which the run stops.
      pause_seconds: before the first retry.
      say: called with a message for each failure.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        attempts: int,
        pause_seconds: float,
        say: Callable[[str], None],
    ):
        self._checkpoints = checkpoints
        self._attempts = attempts
        self._pause = pause_seconds
        self._say = say
        self._failures = 0
        self._writing = False
        self._due_at: float | None = None
        self.failed = 0

    def is_due_again(self) -> bool:
        """Whether a save failed and its pause is over; cheap enough for every step."""
        if jax.process_count() > 1:
            return False
        try:
            self._checkpoints.check()
        except Exception as error:
            self._writing = False
            self._checkpoints.recover()
            self._note(error)
        return self._due_at is not None and time.monotonic() >= self._due_at

    def save(self, state: State, *what: Any) -> None:
        """Starts a save; arguments as for `Checkpoints.save`.

        Raises:
          CannotSave: saving has failed `attempts` times in a row.
        """
        self.settle()
        if self._try(lambda: self._checkpoints.probe(state), begun=False) and self._try(
            lambda: self._checkpoints.save(state, *what)
        ):
            self._writing, self._due_at = True, None

    def finish(self, *what: Any) -> None:
        """Saves and waits until all is on disk, with as many retries as allowed.

        Raises:
          CannotSave: saving has failed `attempts` times in a row.
        """
        self.save(*what)
        while not (self._writing and self.settle()):
            time.sleep(max(0.0, (self._due_at or 0) - time.monotonic()))
            self.save(*what)

    def settle(self) -> bool:
        """Waits for the save in progress; returns whether it succeeded.

        Raises:
          CannotSave: saving has failed `attempts` times in a row.
        """
        well = self._try(self._checkpoints.wait)
        if well and self._writing:
            self._failures = 0
        self._writing = False
        return well

    def _try(self, act: Callable[[], None], begun: bool = True) -> bool:
        error = None
        try:
            act()
        except Exception as raised:
            error = raised
        failed = np.array([error is not None])
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(failed).reshape(-1)
        if failed.any() and begun:
            self._checkpoints.recover()
        if failed.any():
            self._note(error or OSError(f"process {failed.argmax()} cannot save"))
        return not failed.any()

    def _note(self, error: Exception) -> None:
        self._failures += 1
        self.failed += 1
        message = in_a_line(error)
        if self._failures >= self._attempts:
            raise CannotSave(
                f"saving failed {self._failures} times in a row, last with {message}. "
                "Older checkpoints are whole; the same command continues from there."
            ) from error
        pause = min(self._pause * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
        self._due_at = time.monotonic() + pause
        self._say(
            f"saving failed ({message}); trying again in {pause:.0f} s "
            f"({self._failures} of {self._attempts})"
        )
