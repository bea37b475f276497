"""Reporting to a tracker from a thread that a run never waits for."""

import collections
import pathlib
import threading
import time
from collections.abc import Mapping

from fmjax.training.reporting.trackers.tracker import Connection, Tracker

CAPACITY = 1000  # calls of `log` that wait at most; then the oldest are dropped
CLOSE_SECONDS = 20.0  # that the end of a run waits for trackers
_PAUSES_SECONDS = (1.0, 60.0)  # after the first failure, and at most


class Outbox:
    """Metrics on their way to a tracker, sent by a thread of their own.

    What fails is tried again, after pauses that double, until it is sent or the run
    ends. No call raises what the tracker raises, and none but `close` waits.

    Args:
      tracker: where to report.
      run_dir: the run directory.
      config: the gin text of the whole experiment.
    """

    def __init__(self, tracker: Tracker, run_dir: pathlib.Path, config: str):
        self._tracker, self._run_dir, self._config = tracker, run_dir, config
        self._waiting: collections.deque = collections.deque()
        self._changed = threading.Condition()
        self._closing = False
        self._dropped = 0
        self._pause = _PAUSES_SECONDS[0]
        self._found: str | None = None
        self._told: str | None = None
        name = f"tracker-{tracker.gin_name}"
        # A daemon: a process that ends does not wait for a server that hangs.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Hands over metrics of a step."""
        with self._changed:
            if len(self._waiting) == CAPACITY:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append((step, figures, time.time()))
            self._changed.notify()

    def trouble(self) -> str | None:
        """A line on what failed since the last call, once for each message."""
        found, self._found = self._found, None
        if found is None or found == self._told:
            return None
        self._told = found
        return f"@{self._tracker.gin_name}() failed and is tried again: {found}"

    def end(self) -> None:
        """Tells the thread to end once all is sent."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self, deadline: float) -> str | None:
        """Waits until all is sent, or until then.

        Args:
          deadline: by `time.monotonic`.

        Returns:
          None, or a line on what was not sent.
        """
        self.end()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        lost, error = self._dropped + len(self._waiting), self._found or self._told
        why = f": {error}" if error else ""
        if lost:
            return f"@{self._tracker.gin_name}() was not sent {lost} lines{why}"
        if self._thread.is_alive():
            return f"@{self._tracker.gin_name}() did not end in time{why}"
        return None

    def _work(self) -> None:
        connection: Connection | None = None
        while True:
            try:
                if connection is None:
                    connection = self._tracker.connect(self._run_dir, self._config)
                self._send(connection)
                connection.close()
                return
            # Whatever it is, the run goes on.
            except Exception as error:
                self._found = f"{type(error).__name__}: {error}".splitlines()[0]
            with self._changed:
                if self._closing:
                    return
                self._changed.wait_for(lambda: self._closing, self._pause)
            self._pause = min(2 * self._pause, _PAUSES_SECONDS[1])

    def _send(self, connection: Connection) -> None:
        """Sends what there is and what comes, until `close`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                first = self._waiting[0]
            connection.log(*first)
            self._pause = _PAUSES_SECONDS[0]
            with self._changed:
                # Unless it was dropped meanwhile.
                if self._waiting and self._waiting[0] is first:
                    self._waiting.popleft()
