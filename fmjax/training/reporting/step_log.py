"""Step metrics, read with a delay of two steps.

Reading a step's loss waits until it is computed. Two steps later it is available, so
the accelerator does not idle; and since every step is read, bad steps are detected and
the host runs at most two steps ahead.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

LAG = 2


class StepLog:
    """Collects the metrics of steps; checks each, and writes every `every`-th.

    Args:
      every: steps between lines of metrics.
      last: the last step of the run, which always has a line.
      unit: of the objective, such as "tokens".
      write: called with (step, number of its batch, values); with the unit "tokens",
        values also hold "step_seconds", their mean, "step_seconds_p50" and "_p95", and
        "tokens_per_second", since the last line, and "tokens_seen" since the start of
        the run.
      check: called with (step, number of its batch, metrics) for every step; may raise.
      figures: metrics of a step → numbers by name, for its line.
      seen: tokens (or other units) of earlier steps; NaN if unknown.

    Attributes:
      seen: tokens (or other units) of all steps that were read; NaN if unknown.
    """

    def __init__(
        self,
        every: int,
        last: int,
        unit: str,
        write: Callable[[int, int, dict], None],
        check: Callable[[int, int, dict], None],
        figures: Callable[[dict], dict[str, float]],
        seen: float = 0.0,
    ):
        self._every, self._last, self._unit, self._write = every, last, unit, write
        self._check, self._figures = check, figures
        self._pending: collections.deque = collections.deque()
        self._start = self._last_read = time.perf_counter()
        self._durations: list[float] = []
        self._count = 0.0
        self.seen = seen

    def push(self, step: int, batch: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of `step`; reads and checks those of two steps before."""
        self._pending.append((step, batch, metrics))
        self._read(LAG)

    def all_computed(self) -> bool:
        """Whether the devices have finished all steps."""
        arrays = jax.tree.leaves(self._pending[-1][2]) if self._pending else []
        return all(array.is_ready() for array in arrays)

    def drain(self) -> None:
        """Reads and checks all pending metrics."""
        self._read(0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: reads all steps on entry; time inside it is not counted."""
        self.drain()
        before = time.perf_counter()
        yield
        passed = time.perf_counter() - before
        self._start += passed
        self._last_read += passed

    def _read(self, keep: int) -> None:
        while len(self._pending) > keep:
            step, batch, metrics = self._pending.popleft()
            # One transfer for all metrics of the step.
            metrics = jax.device_get(metrics)
            self._check(step, batch, metrics)
            now = time.perf_counter()
            self._durations.append(now - self._last_read)
            self._last_read = now
            count = float(metrics[self._unit])
            self._count += count
            self.seen += count
            if step % self._every and step != self._last:
                continue
            seconds = max(now - self._start, 1e-9)
            values = self._figures(metrics)
            values["step_seconds"] = seconds / len(self._durations)
            for percent in (50, 95):
                found = float(np.percentile(self._durations, percent))
                values[f"step_seconds_p{percent}"] = found
            values[f"{self._unit}_per_second"] = self._count / seconds
            values[f"{self._unit}_seen"] = self.seen
            self._write(step, batch, values)
            self._start, self._durations, self._count = now, [], 0.0
