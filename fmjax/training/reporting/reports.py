"""All reporting of a run: printed lines, metrics and events."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fmjax.training.reporting.events import Events
from fmjax.training.reporting.metrics import MetricWriter, NoWriter
from fmjax.training.reporting.progress import Reporter, format_values
from fmjax.training.reporting.trackers.outbox import CLOSE_SECONDS, Outbox


class Reports:
    """Reports a run to the terminal, its files and trackers.

    Args:
      run_dir: the run directory.
      steps: updates of the whole run.
      unit: of the objective, such as "tokens".
      utilization: (step_seconds) → figures that depend on these, such as "mfu".
      outboxes: () → those of the run's trackers, which are closed with the reports.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        steps: int,
        unit: str,
        utilization: Callable[[float], dict[str, float | None]],
        outboxes: Callable[[], list[Outbox]] = list,
    ):
        self._first = jax.process_index() == 0
        self._events = Events(run_dir, self._first)
        self._steps, self._unit, self._utilization = steps, unit, utilization
        self._run_dir, self._open_outboxes = run_dir, outboxes
        self._outboxes: list[Outbox] | None = None
        self._step = 0
        self._writer: MetricWriter | NoWriter = NoWriter()
        self._unwritten: str | None = None
        self._say = Reporter()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._say.say(text)

    def event(self, kind: str, step: int, text: str) -> None:
        """Prints an event of a step and adds it to events.jsonl."""
        self.say(text)
        self.note(kind, step, text)

    def note(self, kind: str, step: int, text: str = "") -> None:
        """Adds an event to events.jsonl without printing it."""
        self._events.note(kind, step, text)

    def start(self, step: int) -> None:
        """Starts reporting at a step; deletes the metrics of later steps."""
        self._writer.close()
        self._step = step
        if self._first:
            if self._outboxes is None:
                self._outboxes = self._open_outboxes()
            self._writer = MetricWriter(self._run_dir, step, self._outboxes)
        self._say.start(step, self._steps)

    def advance(self, step: int) -> None:
        """Shows that a step is done."""
        self._say.advance(step)

    def training(self, step: int, values: dict[str, float]) -> None:
        """Reports training metrics of the steps up to this one."""
        values |= self._utilization(values["step_seconds"])
        self._write(step, "train", values)
        self._say.log(step, self._steps, self._unit, values)

    def validation(
        self,
        step: int,
        values: dict[str, float],
        found: dict[str, float | str | np.ndarray],
        seen: dict[str, float],
    ) -> dict[str, float]:
        """Reports the validation loss and the results of further evaluations.

        Args:
          step: updates done.
          values: the loss and metrics; empty without a validation split.
          found: numbers, texts and pictures (uint8 [H, W, 3]) by name.
          seen: progress of the training, such as "epoch", for metrics.jsonl.

        Returns:
          `values` with the numbers of `found`.
        """
        if values:
            self.say(f"step {step}/{self._steps}  validation {format_values(values)}")
        figures = {k: v for k, v in found.items() if isinstance(v, float)}
        if figures:
            self.say(f"step {step}/{self._steps}  {format_values(figures)}")
        for name in found.keys() - figures.keys():
            if isinstance(found[name], str):
                self.say(f"{name}: {found[name]}")
                self._writer.write_text(step, name, found[name])
            else:
                self._writer.write_picture(step, name, found[name])
        if values or figures:
            self._write(step, "validation", values | figures | seen)
        return values | figures

    def flush(self) -> None:
        """Writes what is held back for TensorBoard."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the reports: removes the bar, closes the metrics, waits for trackers."""
        self._say.stop()
        if error := self._writer.close():
            self.say(f"the last metrics were not written: {error}")
        self._writer = NoWriter()
        outboxes, self._outboxes = self._outboxes or [], None
        for outbox in outboxes:
            outbox.end()
        deadline = time.monotonic() + CLOSE_SECONDS
        for outbox in outboxes:
            if trouble := outbox.close(deadline):
                self.event("tracker failed", self._step, trouble)

    def _write(self, step: int, split: str, values: dict[str, Any]) -> None:
        self._step = step
        error = self._writer.write(step, split, values)
        for outbox in self._outboxes or ():
            if trouble := outbox.trouble():
                self.event("tracker failed", step, trouble)
        message = error and str(error)
        if message and message != self._unwritten:
            self.say(f"metrics wait to be written: {message}")
        self._unwritten = message
