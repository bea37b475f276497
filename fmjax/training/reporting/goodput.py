"""Goodput of a run: the share of its life that went into steps it kept.

A clock charges every second of the first process's main thread to one cause. What it
found is appended to goodput.jsonl, so that time is known over all starts of a run,
those that were killed included; `Account` adds up the lines.
"""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from fmjax.storage.paths import as_path
from fmjax.training.reporting import json_lines

FILE = "goodput.jsonl"
STEPS, SET_UP, COMPILATION, RESTORE, DATA, EVALUATION, SAVING, PROFILE = (
    "steps",
    "set-up",
    "compilation",
    "restore",
    "waiting for data",
    "evaluation",
    "saving",
    "profile",
)
AGAIN = "steps done again"
BETWEEN = "between starts"
FIELDS = {"time": (int, float), "began": (int, float), "step": int, "seconds": dict}
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """Charges the time of this thread to causes, and keeps a run's goodput.jsonl.

    Args:
      run_dir: the run directory.
      began: when the process, or the call, began; seconds since 1970.
      writes: whether this process writes the file; only one process of a run should.
      now: a clock for durations, in seconds.
      today: a clock for points in time, in seconds since 1970.

    Attributes:
      began: when this start began, as in the file.
      noted: whether this start has a line in the file.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        began: float,
        writes: bool = True,
        now: Callable[[], float] = time.perf_counter,
        today: Callable[[], float] = time.time,
    ):
        self._file, self._writes = run_dir / FILE, writes
        self._now, self._today = now, today
        self._seconds = {SET_UP: max(0.0, today() - began)}
        self._causes = [SET_UP]
        self._since = now()
        self._noted: dict[str, float] = {}
        self._account = Account()
        self.began = round(began, 3)
        self.noted = False

    def run_from(self, cause: str) -> None:
        """From here the time that no `spend` claims is charged to this cause."""
        self._charge()
        self._causes[0] = cause

    @contextlib.contextmanager
    def spend(self, cause: str) -> Iterator[None]:
        """Context manager: time inside it is charged to the cause."""
        self._charge()
        self._causes.append(cause)
        try:
            yield
        finally:
            self._charge()
            self._causes.pop()

    def move(self, seconds: float, cause: str) -> None:
        """Charges seconds of the current cause to another one."""
        self._add(self._causes[-1], -seconds)
        self._add(cause, seconds)

    def share_since_last_note(self, cause: str) -> float:
        """The share of the time since then that was charged to a cause, 0 … 1."""
        self._charge()
        before = self._noted
        spent = sum(self._seconds.values()) - sum(before.values())
        of_cause = self._seconds.get(cause, 0.0) - before.get(cause, 0.0)
        return of_cause / spent if spent > 0 else 0.0

    def note(self, step: int) -> float:
        """Appends what was spent so far; returns the goodput over the run's life.

        An error of the file system is not raised.

        Args:
          step: updates done.
        """
        self._charge()
        if not self.noted:
            # Only now is it known that the directory is this run's.
            self.noted = True
            for line in read(self._file.parent):
                self._account.add(line)
        self._noted = dict(self._seconds)
        seconds = {cause: round(s, 3) for cause, s in self._seconds.items()}
        line = {
            "time": round(self._today(), 3),
            "began": self.began,
            "step": step,
            "seconds": seconds,
        }
        self._account.add(line)
        if self._writes:
            with contextlib.suppress(OSError), self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return self._account.goodput

    def __enter__(self) -> "Clock":
        """Charges compilations in this process to their own cause until the exit."""
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILED:
            self.move(seconds, COMPILATION)

    def _charge(self) -> None:
        now = self._now()
        self._add(self._causes[-1], now - self._since)
        self._since = now

    def _add(self, cause: str, seconds: float) -> None:
        self._seconds[cause] = self._seconds.get(cause, 0.0) + seconds


class Account:
    """The time of a run by cause, from the lines of its goodput.jsonl.

    Attributes:
      seconds: by cause. Steps that a run did, lost and did again count once as `STEPS`;
        the first time is in `AGAIN`. From the last line of a start to the next start it
        is `BETWEEN`, in which a killed process may have worked.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {STEPS: 0.0}
        self._start: float | None = None
        self._spent: Mapping[str, float] = {}
        self._time = 0.0
        self._step = 0
        self._kept: list[tuple[int, int, float]] = []  # from step, to step, seconds

    @property
    def total(self) -> float:
        """Seconds from the first start to the last line."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the seconds that went into steps that were kept."""
        return self.seconds[STEPS] / self.total if self.total else 0.0

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds the next line."""
        if line["began"] != self._start:
            if self._start is not None:
                self._add(BETWEEN, max(0.0, line["began"] - self._time))
            self._start, self._spent = line["began"], {}
        more = {c: s - self._spent.get(c, 0.0) for c, s in line["seconds"].items()}
        for cause, seconds in more.items():
            self._add(cause, seconds)
        step = line["step"]
        if step < self._step:
            self._lose(step)
        elif step > self._step:
            self._kept.append((self._step, step, more.get(STEPS, 0.0)))
        self._step, self._time, self._spent = step, line["time"], line["seconds"]

    def _lose(self, step: int) -> None:
        """What was done beyond this step has to be done again."""
        while self._kept and self._kept[-1][1] > step:
            first, last, seconds = self._kept.pop()
            lost = seconds * (last - max(first, step)) / (last - first)
            if first < step:
                self._kept.append((first, step, seconds - lost))
            self._add(STEPS, -lost)
            self._add(AGAIN, lost)

    def _add(self, cause: str, seconds: float) -> None:
        self.seconds[cause] = self.seconds.get(cause, 0.0) + seconds


def read(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's goodput.jsonl, without those that are damaged."""
    every = json_lines.read(as_path(run_dir) / FILE, FIELDS)
    return [line for line in every if has_seconds(line)]


def has_seconds(line: Mapping[str, Any]) -> bool:
    """Whether the times and the seconds of a line are finite numbers."""
    figures = (line["time"], line["began"], *line["seconds"].values())
    return all(isinstance(x, (int, float)) and math.isfinite(x) for x in figures)
