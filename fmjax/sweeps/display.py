"""What a sweep prints: a live table in a terminal, elsewhere a line for each event."""

import collections
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fmjax.run.record import printable
from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.engine import Progress
from fmjax.sweeps.results import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    WAITING,
    Row,
    caption,
    results_table,
)

_PLAIN_WIDTH = 160  # columns of the table if the output is not a terminal
# Rows of the live table; the last table has all.
_LIVE_ROWS = 10


class Display:
    """Prints a sweep to the terminal; a context manager.

    Args:
      config: of the sweep.
      console: where to; None for the standard output.
    """

    def __init__(self, config: SweepConfig, console: Console | None = None):
        self._config = config
        self._console = console or Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = _PLAIN_WIDTH
        self._live: Live | None = None

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            # Called by the engine alone, so that no thread refreshes.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def show(self, rows: Sequence[Row], runs: Sequence[Progress]) -> None:
        """Shows how far the sweep is, in a terminal."""
        if self._live is None:
            return
        best = [row for row in rows if row.state == FINISHED][:_LIVE_ROWS]
        parts: list[Text | Table] = [Text(counts(rows))]
        if runs:
            parts.append(self._running(runs))
        if best:
            parts.append(results_table(best, self._config, f"best {len(best)}"))
        self._live.update(Group(*parts), refresh=True)

    def finish(self, rows: Sequence[Row]) -> None:
        """Prints the table of all trials."""
        self._console.print(results_table(rows, self._config))
        self.say(caption(self._config))
        self.say(counts(rows))

    def _running(self, runs: Sequence[Progress]) -> Table:
        table = Table(title="runs of this process", title_justify="left")
        table.add_column("run", overflow="fold")
        table.add_column("step", justify="right")
        table.add_column(self._config.metric, justify="right")
        for run in runs:
            last = "—"
            if run.validation is not None:
                step, value = run.validation
                last = f"{value:.4f} at {step:,}"
            table.add_row(Text(printable(run.name)), f"{run.step:,}", last)
        return table


def counts(rows: Sequence[Row]) -> str:
    """How many trials are in which state."""
    found = collections.Counter(row.state for row in rows)
    states = (FINISHED, STOPPED, FAILED, RUNNING, WAITING)
    parts = [f"{found[state]:,} {state}" for state in states if found[state]]
    return f"{len(rows):,} trials: {', '.join(parts)}"
