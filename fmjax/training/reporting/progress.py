"""Progress of a run: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fmjax.objectives.terms import UNITS


class Reporter:
    """Prints progress in the first process of a run; the others print nothing."""

    def __init__(self):
        self._console = Console(highlight=False, soft_wrap=True)
        self._silent = jax.process_index() != 0
        self._bar: Progress | None = None
        self._task = None
        self._last = 0.0

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._silent:
            return
        if self._bar:
            self._bar.console.print(text, markup=False)
        else:
            self._console.print(text, markup=False)
        sys.stdout.flush()

    def start(self, step: int, steps: int) -> None:
        """Shows the bar, on a terminal."""
        if self._silent or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=steps, completed=step, note="")
        self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, steps: int, unit: str, values: dict[str, Any]) -> None:
        """Shows the metrics of a step next to the bar, or as a line every few seconds.

        Args:
          step: updates done.
          steps: updates of the whole run.
          unit: of the objective, such as "tokens".
          values: the metrics.
        """
        note = (
            f"loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}  "
            f"{values[f'{unit}_per_second']:,.0f} {unit}/s"
        )
        if values.get("mfu") is not None:
            note += f"  mfu {values['mfu']:.1%}"
        if self._bar:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._last > 5 or step >= steps:
            self._last = time.monotonic()
            self.say(f"step {step}/{steps}  {note}")

    def stop(self) -> None:
        """Removes the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def format_values(values: dict[str, float]) -> str:
    """Formats metrics as one line."""
    return "  ".join(
        f"{name} {value:,.0f}" if name in UNITS else f"{name} {value:.4f}"
        for name, value in values.items()
    )
