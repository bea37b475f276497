"""One run of a trial: `fmjax train` in a process of its own, followed by its files."""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.errors import suggest
from fmjax.launch.exit_codes import UNFINISHED
from fmjax.run import lock as run_lock
from fmjax.run.curves import Curves, as_number
from fmjax.sweeps.child_process import ChildProcess
from fmjax.training.reporting import metrics
from fmjax.training.reporting.json_lines import Tail

COMMAND = (sys.executable, "-m", "fmjax")
# Starts of a run that others interrupt, before it counts as failed.
_MOST_STARTS = 10


class TrialRun:
    """A run of a trial, which may have begun in an earlier process.

    Args:
      arguments: of `fmjax train`, without --run_dir.
      run_dir: its run directory.
      log: file that what it prints is appended to.
      metric: of validation that is followed.
      environment: of its process.
      command: that runs fmjax.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        run_dir: pathlib.Path,
        log: pathlib.Path,
        metric: str,
        environment: Mapping[str, str],
        command: Sequence[str] = COMMAND,
    ):
        self.run_dir, self._log = run_dir, log
        self._words = [*command, "train", *arguments, "--run_dir", str(run_dir)]
        self._metric, self._environment = metric, dict(environment)
        self._tail = Tail(run_dir / metrics.FILE, metrics.FIELDS)
        self._curves = Curves()
        self._process: ChildProcess | None = None
        self._starts, self._told = 0, False

    def poll(self) -> int | None:
        """Starts the process where none runs; its exit code once the run has ended."""
        if self._process is None:
            if self._told:
                return UNFINISHED
            # That of a sweep which was killed a moment ago may not have ended yet.
            if run_lock.is_alive(self.run_dir) is not True:
                self._starts += 1
                self._process = ChildProcess(self._words, self._log, self._environment)
            return None
        code = self._process.poll()
        if code == UNFINISHED and not self._told and self._starts < _MOST_STARTS:
            self._process = None
            return None
        return code

    def read(self) -> None:
        """Reads what is new in its metrics."""
        for anew, lines in self._tail.chunks():
            self._curves = Curves() if anew else self._curves
            for line in lines:
                self._curves.add(line)

    @property
    def step(self) -> int:
        """Updates done, as far as was logged."""
        return self._curves.last_step

    @property
    def validations(self) -> list[tuple[int, float]]:
        """(step, metric) of the validations so far; NaN where not finite."""
        steps, values = self._curves.series("validation", self._metric)
        return list(zip(steps.tolist(), values.tolist()))

    @property
    def last_validation(self) -> tuple[int, float] | None:
        """(step, metric) of the last validation; None before it."""
        return next(reversed(self.validations), None)

    def result(self, code: int) -> dict[str, Any]:
        """How the ended run came out: its step and value, or its error.

        Args:
          code: exit code of its process.
        """
        self.read()
        if code != 0:
            error = f"exit code {code}"
            if self._process is not None:
                error = self._process.error(code)
            return {"step": self.step, "value": None, "error": error}
        last = self._curves.newest.get("validation", {})
        found = as_number(last.get(self._metric))
        error = ""
        if not self.has_metric:
            error = self.missing()
        elif found is None:
            error = f"{self._metric} is not finite"
        return {"step": self.step, "value": found, "error": error}

    def missing(self) -> str:
        """The sentence for a metric that the last validation does not have."""
        names = self._curves.names("validation")
        if not names:
            return "the data has no validation split, so no metric of validation"
        return (
            f"validation logs no {self._metric!r}.{suggest(self._metric, names)} It "
            f"logs {', '.join(names)}."
        )

    @property
    def has_metric(self) -> bool:
        """Whether the last validation had the metric."""
        return self._metric in self._curves.newest.get("validation", {})

    def tell_to_stop(self) -> None:
        """Tells the process to save and end; one that has not begun never does."""
        self._told = True
        if self._process is not None:
            self._process.tell_to_stop()

    def end(self, seconds: float) -> None:
        """Waits for the process, and kills it after so many seconds."""
        if self._process is not None:
            self._process.end(seconds)
