"""Metrics of steps that are still being computed, read two steps late.

Reading a step's loss waits for it. Two steps late it is there already, so that the
accelerator never idles, a bad step is always noticed, and the host cannot run further
ahead.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

import jax

LAG = 2


class StepLog:
    """Collects the metrics of steps and passes on those of every `every`-th.

    Args:
      every: steps between the lines.
      last: the last step of the run, which always has a line.
      unit: of what the objective counts.
      write: called with (step, number of its batch, values); values also hold
        "step_seconds" and "tokens_per_second", or whatever the unit is, since the line
        before, and "tokens_seen" since the run began.
      check: called with (step, number of its batch, metrics) for every step; may raise.
      seen: tokens, or whatever the unit is, of the steps before; NaN if unknown.

    Attributes:
      seen: the same, with the steps that were read.
    """

    def __init__(
        self,
        every: int,
        last: int,
        unit: str,
        write: Callable[[int, int, dict], None],
        check: Callable[[int, int, dict], None],
        seen: float = 0.0,
    ):
        self._every, self._last, self._unit, self._write = every, last, unit, write
        self._check = check
        self._pending: collections.deque = collections.deque()
        self._start = time.perf_counter()
        self._steps = 0
        self._count = 0.0
        self.seen = seen

    def push(self, step: int, batch: int, metrics: dict[str, jax.Array]) -> None:
        """Notes the metrics of `step`; reads and checks those of two steps before."""
        self._pending.append((step, batch, metrics))
        self._read(LAG)

    def drain(self) -> None:
        """Reads and checks everything."""
        self._read(0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, all steps are read and time does not count."""
        self.drain()
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before

    def _read(self, keep: int) -> None:
        while len(self._pending) > keep:
            step, batch, metrics = self._pending.popleft()
            # All in one transfer.
            metrics = jax.device_get(metrics)
            self._check(step, batch, metrics)
            self._steps += 1
            count = float(metrics[self._unit])
            self._count += count
            self.seen += count
            if step % self._every and step != self._last:
                continue
            now = time.perf_counter()
            seconds = max(now - self._start, 1e-9)
            values = {k: float(v) for k, v in metrics.items()}
            values["step_seconds"] = seconds / self._steps
            values[f"{self._unit}_per_second"] = self._count / seconds
            values[f"{self._unit}_seen"] = self.seen
            self._write(step, batch, values)
            self._start, self._steps, self._count = now, 0, 0.0
