"""Metrics of steps that are still being computed, read two steps late.

Reading a step's loss waits for it. Two steps late it is there already, so that the
accelerator never idles, a loss that is not finite is noticed at every step, and the
host cannot run further ahead.
"""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator

import jax

LAG = 2


class Diverged(RuntimeError):
    """The loss of a step is not finite.

    Attributes:
      step: the step, counting from 1.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class StepLog:
    """Collects the metrics of steps and passes on those of every `every`-th.

    Args:
      every: steps between the lines.
      last: the last step of the run, which always has a line.
      unit: of what the objective counts.
      write: called with (step, values); values also hold "step_seconds" and
        "tokens_per_second", or whatever the unit is, since the line before.
    """

    def __init__(
        self, every: int, last: int, unit: str, write: Callable[[int, dict], None]
    ):
        self._every, self._last, self._unit, self._write = every, last, unit, write
        self._pending: collections.deque = collections.deque()
        self._start = time.perf_counter()
        self._steps = 0
        self._count = 0.0

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Notes the metrics of `step`, and reads those of two steps before.

        Raises:
          Diverged: where a loss that was read is not finite.
        """
        self._pending.append((step, metrics))
        self._read(LAG)

    def drain(self) -> None:
        """Reads everything; raises `Diverged` likewise."""
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
            step, metrics = self._pending.popleft()
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise Diverged(f"the loss of step {step} is {loss}", step)
            self._steps += 1
            self._count += float(metrics[self._unit])
            if step % self._every and step != self._last:
                continue
            now = time.perf_counter()
            seconds = max(now - self._start, 1e-9)
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            values["step_seconds"] = seconds / self._steps
            values[f"{self._unit}_per_second"] = self._count / seconds
            self._write(step, values)
            self._start, self._steps, self._count = now, 0, 0.0
