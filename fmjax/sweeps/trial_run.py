"""One run of a trial: `fmjax train` in a process of its own, followed by its files."""

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.errors import suggest
from fmjax.launch.exit_codes import UNFINISHED
from fmjax.run import lock as run_lock
from fmjax.run.curves import Curves, as_number
from fmjax.training.reporting import metrics
from fmjax.training.reporting.json_lines import Tail

COMMAND = (sys.executable, "-m", "fmjax")
_CHILD = (sys.executable, "-m", "fmjax.sweeps.child")
# Starts of a run that others interrupt, before it counts as failed.
_MOST_STARTS = 10
_LONGEST_ERROR = 300


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
        self._process: subprocess.Popen | None = None
        self._starts, self._printed, self._told = 0, 0, False

    def poll(self) -> int | None:
        """Starts the process where none runs; its exit code once the run has ended."""
        if self._process is None:
            if self._told:
                return UNFINISHED
            # That of a sweep which was killed a moment ago may not have ended yet.
            if run_lock.is_alive(self.run_dir) is not True:
                self._start()
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
            return {"step": self.step, "value": None, "error": self._error(code)}
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
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self, seconds: float) -> None:
        """Waits for the process, and kills it after so many seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._starts += 1
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as out:
            self._printed = out.tell()
            self._process = subprocess.Popen(
                [*_CHILD, str(os.getpid()), *self._words],
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Out of the terminal's group: Ctrl-C reaches it through the sweep.
                start_new_session=True,
            )

    def _error(self, code: int) -> str:
        """What the process printed last, as a sentence."""
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (the machine may have run out of memory)" if code == -9 else ""
            return f"killed by {name}{hint}"
        with self._log.open("rb") as log:
            log.seek(self._printed)
            lines = log.read().decode(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("fmjax: ")]
        # An exception's own line is the last that is not indented.
        raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(?::|$)", line)]
        found = (said or raised or [line for line in lines if line.strip()])[-1:]
        text = found[0].removeprefix("fmjax: ") if found else f"exit code {code}"
        return text[:_LONGEST_ERROR]
