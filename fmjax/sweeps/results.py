"""The results of a sweep: a row for each trial, sorted by its metric."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fmjax.evaluation.intervals import NOTE, Interval, interval_of
from fmjax.run.record import printable
from fmjax.storage import objects
from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.folder import SweepFolder
from fmjax.sweeps.space import Point, short_names
from fmjax.sweeps.trial_fields import error_of, number_of, point_of, runs_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
RUNNING, WAITING = "running", "waiting"
# By the name of Optuna's state.
_STATES = {
    "COMPLETE": FINISHED,
    "PRUNED": STOPPED,
    "FAIL": FAILED,
    "RUNNING": RUNNING,
    "WAITING": WAITING,
}


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run of a trial came out.

    Attributes:
      seed: train.seed of the run.
      name: of its run directory.
      step: updates done.
      value: the metric of the last validation; None if it failed.
      error: why it failed; "" if it did not.
      stopped: whether it was ended because it fell behind.
    """

    seed: int
    name: str
    step: int
    value: float | None
    error: str
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial of a sweep.

    Attributes:
      trial: its number.
      state: "finished", "stopped" (it fell behind), "failed", "running" or "waiting".
      point: value of each binding that is varied, as text.
      metric: mean over the runs that have a value, with its interval; of a trial that
        was stopped the last that it reported; None without any.
      runs: of each seed that has ended.
      error: why the trial failed; "" if it did not.
    """

    trial: int
    state: str
    point: Point
    metric: Interval | None
    runs: tuple[RunResult, ...]
    error: str


def rows_of(trials: "Iterable[FrozenTrial]", config: SweepConfig) -> list[Row]:
    """The rows of a study's trials: finished, stopped, failed, then the others.

    Within each state the best comes first.
    """
    rows = [_row(trial, config) for trial in trials]
    order = list(_STATES.values())

    def key(row: Row):
        best = math.inf if row.metric is None else -config.is_better * row.metric.mean
        return order.index(row.state), best, row.trial

    return sorted(rows, key=key)


def results_table(rows: Sequence[Row], config: SweepConfig, title: str = "") -> Table:
    """The rows as a table."""
    table = Table(title=title or None, title_justify="left")
    table.add_column("trial", justify="right")
    for name in short_names(config.space).values():
        table.add_column(name, overflow="fold")
    table.add_column(config.metric, justify="right", no_wrap=True)
    if config.seeds > 1:
        table.add_column("seeds", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("state", overflow="fold")
    for row in rows:
        good = [run for run in row.runs if run.value is not None]
        cells = [
            str(row.trial),
            *(shown(row.point[name]) if row.point else "" for name in config.space),
            "—" if row.metric is None else str(row.metric),
            *([str(len(good))] if config.seeds > 1 else []),
            f"{max((run.step for run in row.runs), default=0):,}",
            f"{row.state}: {row.error}" if row.error else row.state,
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def caption(config: SweepConfig) -> str:
    """What the figures of the table are."""
    what = f"{config.metric} of the last validation"
    if config.seeds > 1:
        what += f", {NOTE}"
    return what


def shown(text: str) -> str:
    """A value as tables and names of runs show it: four digits of a number."""
    try:
        number = float(text)
    except ValueError:
        return text.strip("'\"")
    return text if len(text) <= 6 else f"{number:.4g}"


def write_results(
    rows: Sequence[Row], config: SweepConfig, folder: SweepFolder
) -> None:
    """Writes the results of the sweep so far as JSON, if they are new."""
    content = {
        "metric": config.metric,
        "direction": config.direction,
        "interval": "95%, Student's t over seeds",
        "trials": [_json(row) for row in rows],
    }
    text = json.dumps(content, indent=2) + "\n"
    with folder.one_at_a_time():
        if objects.read_or_none(folder.results) != text.encode():
            objects.write(folder.results, text.encode())


def _row(trial: "FrozenTrial", config: SweepConfig) -> Row:
    runs = tuple(RunResult(seed, **kept) for seed, kept in runs_of(trial).items())
    values = [run.value for run in runs if run.value is not None]
    metric = interval_of(values) if values else None
    state = _STATES[trial.state.name]
    if state == STOPPED and trial.value is not None:
        metric = Interval(trial.value, None)
    drawn = trial.params.keys() >= config.space.keys()
    point = point_of(trial, config) if drawn else {}
    return Row(number_of(trial), state, point, metric, runs, error_of(trial))


def _json(row: Row) -> dict[str, Any]:
    mean, half = row.metric or (None, None)
    between = None if half is None else [mean - half, mean + half]
    return {
        "trial": row.trial,
        "state": row.state,
        "bindings": row.point,
        "mean": mean,
        "interval": between,
        "runs": [dataclasses.asdict(run) for run in row.runs],
        "error": row.error,
    }
