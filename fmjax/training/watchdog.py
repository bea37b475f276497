"""Notices a run that hangs: a step far beyond the usual, a process not heard of."""

import collections
import contextlib
import faulthandler
import json
import os
import pathlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

FOLDER = "heartbeats"
BEAT_SECONDS = 1.0
_STEPS = 32  # of which the median is taken
_ENOUGH = 3


class Watchdog:
    """Watches the steps of this process, and the heartbeats of the run's others.

    Each process of several keeps heartbeats/INDEX.json fresh: where it is, and when it
    said so.

    Args:
      run_dir: the run directory, which all processes see.
      index: of this process; None means JAX's.
      count: of processes; None likewise.
      factor: a step may take so many times the median of the last ones.
      at_least: seconds that any step may take; also for which a process may be silent.
      on_hang: is told who hangs, in the watchdog's thread.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        index: int | None = None,
        count: int | None = None,
        factor: float,
        at_least: float,
        on_hang: Callable[[str], None],
    ):
        self._folder = run_dir / FOLDER
        self._index = jax.process_index() if index is None else index
        self._count = jax.process_count() if count is None else count
        self._factor, self._at_least = factor, at_least
        self._on_hang = on_hang
        self._lock = threading.Lock()
        self._step = 0
        self._since: float | None = None
        self._pauses = 0
        self._seconds: collections.deque[float] = collections.deque(maxlen=_STEPS)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen: dict[int, tuple[Any, float]] = {}

    def __enter__(self) -> "Watchdog":
        if self._index == 0 and self._count > 1:
            self._folder.mkdir(exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._file(self._index).unlink(missing_ok=True)

    def begin(self, step: int) -> None:
        """A step begins, and with it the one before has ended."""
        now = time.monotonic()
        with self._lock:
            if self._since is not None:
                self._seconds.append(now - self._since)
            self._step, self._since = step, now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the step may take as long as it likes: it evaluates, or compiles."""
        with self._lock:
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                self._since = None

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # Where this one cannot say that it lives, others' silence tells nothing.
            if self._count > 1 and not self._beat():
                self._seen.clear()
            why = self._late() or self._silent()
            if why:
                self._on_hang(why)
                return

    def _beat(self) -> bool:
        beat = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._step,
            "time": time.time(),
        }
        file = self._file(self._index)
        beside = file.with_suffix(".tmp")
        try:
            beside.write_text(json.dumps(beat))
            os.replace(beside, file)
        except OSError:
            return False
        return True

    def _late(self) -> str | None:
        with self._lock:
            if self._since is None or self._pauses or len(self._seconds) < _ENOUGH:
                return None
            usual = statistics.median(self._seconds)
            taken = time.monotonic() - self._since
            step = self._step
        if taken <= max(self._at_least, self._factor * usual):
            return None
        return (
            f"step {step} has taken {taken:.0f} s, where {usual:.2g} s are usual"
            f"{self._culprit()}"
        )

    def _culprit(self) -> str:
        beats = {i: self._read(i) for i in range(self._count)}
        steps = {i: beat["step"] for i, beat in beats.items() if beat}
        missing = [i for i, beat in beats.items() if not beat]
        if missing:
            return f"; process {missing[0]} is gone"
        last = min(steps, key=lambda index: steps[index])
        if steps[last] == max(steps.values()):
            return ""
        beat = beats[last]
        return (
            f"; process {last} ({beat['host']}, pid {beat['pid']}) hangs at step "
            f"{steps[last]}, others are at {max(steps.values())}"
        )

    def _silent(self) -> str | None:
        """Whether another process has ceased to say anything; clocks need not agree."""
        now = time.monotonic()
        for index in range(self._count):
            if index == self._index:
                continue
            beat = self._read(index)
            if beat is None and index not in self._seen:
                continue  # It has not begun yet.
            said = beat and beat["time"]
            before, since = self._seen.setdefault(index, (said, now))
            if said != before:
                self._seen[index] = (said, now)
            elif now - since > self._at_least:
                who = f" ({beat['host']}, pid {beat['pid']})" if beat else ""
                return (
                    f"process {index}{who} has not been heard of for "
                    f"{now - since:.0f} s"
                )
        return None

    def _read(self, index: int) -> dict[str, Any] | None:
        try:
            return json.loads(self._file(index).read_bytes())
        except (OSError, ValueError):
            return None

    def _file(self, index: int) -> pathlib.Path:
        return self._folder / f"{index}.json"


def warn(why: str) -> None:
    """A Watchdog's `on_hang` that says so and no more."""
    print(f"fmjax: seems to hang: {why}", file=sys.stderr, flush=True)


def end_process(code: int) -> Callable[[str], None]:
    """A Watchdog's `on_hang` that says where every thread is, and ends the process."""

    def end(why: str) -> None:
        print(f"fmjax: hangs: {why}. Every thread:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(code)

    return end
