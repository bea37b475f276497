"""Watchdog: detects a hang, a step far slower than the median or a silent process."""

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
from typing import Any, TypeVar

import jax

from fmjax.storage import objects
from fmjax.storage.paths import is_bucket

FOLDER = "heartbeats"
BEAT_SECONDS = 1.0
# Every process reads the heartbeats of all others, and stores charge for requests.
BUCKET_BEAT_SECONDS = 10.0
_STEPS = 32  # last steps that the median is taken of
_ENOUGH = 3
PATIENCE = 12
_NOTE_SECONDS = 5.0

_T = TypeVar("_T")


class Watchdog:
    """Watches the step times of this process and the heartbeats of the others.

    In a run of several processes, each updates heartbeats/INDEX.json with its step,
    whether it has its batch, and the time. All access to the run directory is in a
    separate thread, because the file system may hang too.

    Args:
      run_dir: the run directory, which all processes share.
      index: of this process; None means JAX's process index.
      count: number of processes; None means JAX's process count.
      factor: a step counts as hung after this many times the median step time.
      at_least: seconds before any step counts as hung, and for which a process may send
        no heartbeat. Anything but an ordinary step (starting, compiling, evaluating,
        saving) may take PATIENCE times as long.
      note: called first with a message that says what hangs; it may take at most
        _NOTE_SECONDS.
      on_hang: called with the same message afterwards.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        index: int | None = None,
        count: int | None = None,
        factor: float,
        at_least: float,
        note: Callable[[str], None] = lambda why: None,
        on_hang: Callable[[str], None],
    ):
        self._folder = run_dir / FOLDER
        self._index = jax.process_index() if index is None else index
        self._count = jax.process_count() if count is None else count
        self._factor, self._at_least = factor, at_least
        self._beat_seconds = BEAT_SECONDS
        if is_bucket(run_dir):
            self._beat_seconds = min(BUCKET_BEAT_SECONDS, at_least / 4)
        self._note, self._on_hang = note, on_hang
        self._lock = threading.Lock()
        self._step, self._computes = 0, False
        self._since = time.monotonic()
        self._in_step = False
        self._pauses = 0
        self._seconds: collections.deque[float] = collections.deque(maxlen=_STEPS)
        self._ended = threading.Event()
        self._silence: str | None = None
        self._threads = [threading.Thread(target=self._watch, daemon=True)]
        if self._count > 1:
            self._threads.append(threading.Thread(target=self._keep_up, daemon=True))
        self._seen: dict[int, tuple[Any, float]] = {}

    def __enter__(self) -> "Watchdog":
        if self._index == 0 and self._count > 1:
            self._folder.mkdir(exist_ok=True)
        self._since = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(_NOTE_SECONDS)
        file = self._file(self._index)
        with contextlib.suppress(OSError), objects.os_errors(file):
            file.unlink(missing_ok=True)

    def begin(self, step: int) -> None:
        """Marks the start of a step and the end of the one before."""
        now = time.monotonic()
        with self._lock:
            if self._in_step:
                self._seconds.append(now - self._since)
            self._step, self._since, self._in_step = step, now, True
            self._computes = False

    def compute(self) -> None:
        """Marks that the step has its batch; from here it may wait for others."""
        with self._lock:
            self._computes = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager for evaluating, saving and restoring, which take longer."""
        self._pause(1)
        try:
            yield
        finally:
            self._pause(-1)

    def _pause(self, by: int) -> None:
        with self._lock:
            self._pauses += by
            self._since, self._in_step = time.monotonic(), False

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if why := self._late() or self._silence:
                _within(_NOTE_SECONDS, lambda: self._note(why), None)
                self._on_hang(why)
                return

    def _keep_up(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            # If this process cannot access the run directory, missing heartbeats of
            # others mean nothing.
            if self._beat():
                self._silence = self._silence or self._silent()
            else:
                self._seen.clear()

    def _beat(self) -> bool:
        beat = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._step,
            "computes": self._computes,
            "time": time.time(),
        }
        file = self._file(self._index)
        try:
            objects.write(file, json.dumps(beat).encode())
        except OSError:
            return False
        return True

    def _late(self) -> str | None:
        with self._lock:
            ordinary = self._in_step and len(self._seconds) >= _ENOUGH
            usual = statistics.median(self._seconds) if ordinary else 0.0
            taken = time.monotonic() - self._since
            step = self._step
        patience = 1 if ordinary else PATIENCE
        if taken <= max(patience * self._at_least, self._factor * usual):
            return None
        culprit = _within(_NOTE_SECONDS, self._culprit, "")
        if not ordinary:
            return f"nothing has come of step {step} for {taken:.0f} s{culprit}"
        return (
            f"step {step} has taken {taken:.0f} s, where {usual:.2g} s are usual"
            f"{culprit}"
        )

    def _culprit(self) -> str:
        if self._count == 1:
            return ""
        beats = {i: self._read(i) for i in range(self._count)}
        missing = [i for i, beat in beats.items() if not beat]
        if missing:
            return f"; process {missing[0]} is gone"
        places = {i: (beat["step"], beat["computes"]) for i, beat in beats.items()}
        last = min(places, key=lambda index: places[index])
        (step, computes), furthest = places[last], max(places.values())
        if (step, computes) == furthest:
            return ""
        beat = beats[last]
        waits = "" if computes else ", waiting for its batch"
        return (
            f"; process {last} ({beat['host']}, pid {beat['pid']}) hangs at step "
            f"{step}{waits}; others are at {furthest[0]}"
        )

    def _silent(self) -> str | None:
        """A message if another process stopped its heartbeat; None if none did.

        Clocks of different hosts need not agree: only changes of a heartbeat count.
        """
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
        file = self._file(index)
        try:
            with objects.os_errors(file):
                return json.loads(file.read_bytes())
        except (OSError, ValueError):
            return None

    def _file(self, index: int) -> pathlib.Path:
        return self._folder / f"{index}.json"


def _within(seconds: float, act: Callable[[], _T], otherwise: _T) -> _T:
    """The result of `act`; `otherwise` if it takes longer than `seconds`."""
    given = [otherwise]

    def run() -> None:
        given[0] = act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return given[0]


def warn(why: str) -> None:
    """A Watchdog's `on_hang` that only prints the message."""
    print(f"fmjax: seems to hang: {why}", file=sys.stderr, flush=True)


def end_process(code: int) -> Callable[[str], None]:
    """A Watchdog's `on_hang`: prints the stacks of all threads and ends the process.

    Args:
      code: exit code of the process.
    """

    def end(why: str) -> None:
        print(f"fmjax: hangs: {why}. Every thread:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(code)

    return end
