"""Comparing runs: a table of results, the differences of the configs, and curves."""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from fmjax.evaluation.compared_curves import draw
from fmjax.evaluation.compared_runs import (
    ComparedRun,
    Group,
    Over,
    differing,
    groups_of,
    read_runs,
)
from fmjax.evaluation.figure_files import save_figure
from fmjax.evaluation.importance import importance_of_runs, importance_table
from fmjax.evaluation.intervals import NOTE, interval_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLAIN_WIDTH = 160  # columns of the table if the output is not a terminal
# With more runs the table of bindings has a row for each run, instead of a column.
_MOST_COLUMNS = 6


def compare(
    run_dirs: Sequence[str | os.PathLike],
    picture: pathlib.Path | None = None,
    metric: str = "loss",
    trust: bool = False,
    over: Over | None = None,
    importance: bool = False,
) -> None:
    """Prints the results of runs and the differences of their configs; draws curves.

    Runs whose configs are equal but for different seeds are one row: the mean with its
    95% interval.

    Args:
      run_dirs: the run directories, or folders of runs, such as that of a sweep.
      picture: the image file to write; its suffix selects the format. None for none.
      metric: name of the metric to draw, as in metrics.jsonl.
      trust: whether the stored configs may import code. If not, a config that imports
        code is compared as the stored text.
      over: what the curves are drawn over; None as for `curves`.
      importance: whether to print how much the metric's last validation depends on each
        binding that differs.

    Raises:
      UserError: a directory has no metrics, or a run has not logged the metric.
    """
    runs, notes = read_runs(run_dirs, trust)
    groups = groups_of(runs)
    figure = None if picture is None else draw(groups, metric, over)
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    console = Console(width=width, highlight=False)
    console.print(_figures(groups))
    if any(len(group.runs) > 1 for group in groups):
        console.print(f"±: {NOTE}")
    if len(runs) > 1:
        console.print(_bindings(groups))
    for note in [*notes, *(run.note for run in runs if run.note)]:
        console.print(note, markup=False, soft_wrap=True)
    if importance:
        shares = importance_of_runs(runs, metric)
        console.print(importance_table(shares, metric))
    if figure is None:
        return
    save_figure(figure, pathlib.Path(picture))
    console.print(f"curves of {metric}: {picture}", markup=False)


def curves(
    run_dirs: Sequence[str | os.PathLike],
    metric: str = "loss",
    trust: bool = False,
    over: Over | None = None,
) -> "Figure":
    """Draws the curves of runs; seeds of one config as their mean with a band.

    The band is the 95% interval of the mean (Student's t). Runs with other units
    (tokens, images, pairs) get separate axes, since their losses cannot be compared.

    Args:
      run_dirs: the run directories, or folders of runs, such as that of a sweep.
      metric: name of the metric to draw, as in metrics.jsonl.
      trust: whether the stored configs may import code.
      over: "steps", "tokens", "images", "pairs", "flops" or "seconds"; None for steps,
        or for tokens or images if the batch sizes differ.

    Raises:
      UserError: as in `compare`.
    """
    return draw(groups_of(read_runs(run_dirs, trust)[0]), metric, over)


def _figures(groups: Sequence[Group]) -> Table:
    with_seeds = any(len(group.runs) > 1 for group in groups)
    table = Table(title="runs")
    table.add_column("run", overflow="fold")
    for name in (
        *(["seeds"] if with_seeds else []),
        "step",
        "train loss",
        "best validation",
        "last validation",
        "bits/byte",
        "speed",
        "time",
    ):
        table.add_column(name, justify="right")
    for group in groups:
        table.add_row(
            group.label,
            *([str(len(group.runs))] if with_seeds else []),
            " to ".join(dict.fromkeys(str(s) for s in _ends(group, _last_step))),
            _mean(group, lambda run: _last(run.series("train", "loss")[1])),
            _best(group),
            _mean(group, lambda run: _last(run.series("validation", "loss")[1])),
            _mean(
                group, lambda run: _last(run.series("validation", "bits_per_byte")[1])
            ),
            _speed(group),
            _duration(float(np.mean([run.seconds for run in group.runs]))),
        )
    return table


def _mean(group: Group, of: Callable[[ComparedRun], float | None]) -> str:
    """A figure of a run, or its mean and interval over several."""
    found = [value for run in group.runs if (value := of(run)) is not None]
    return str(interval_of(found)) if found else "—"


def _best(group: Group) -> str:
    """The lowest validation loss, of a single run with its step."""
    if len(group.runs) > 1:
        return _mean(group, lambda run: _lowest(run.series("validation", "loss")[1]))
    steps, losses = group.runs[0].series("validation", "loss")
    if not np.isfinite(losses).any():
        return "—"
    lowest = int(np.nanargmin(losses))
    return f"{losses[lowest]:.4f} at {steps[lowest]}"


def _speed(group: Group) -> str:
    unit = group.runs[0].unit
    lines = [line for run in group.runs for line in run.split("train")]
    found = [line.get(f"{unit}_per_second") for line in lines]
    # The median, since the first step compiles and other processes may interfere.
    known = [value for value in found if value is not None]
    return f"{np.median(known):,.0f} {unit}/s" if known else "—"


def _ends(group: Group, of: Callable[[ComparedRun], int]) -> tuple[int, int]:
    found = [of(run) for run in group.runs]
    return min(found), max(found)


def _last_step(run: ComparedRun) -> int:
    return max(line["step"] for line in run.lines)


def _bindings(groups: Sequence[Group]) -> Table | str:
    names = differing(groups)
    if len(groups) == 1 and len(groups[0].runs) > 1:
        return "The configs are the same but for the seed."
    if not names:
        return "The configs are the same."
    table = Table(title="bindings that differ")
    # "—" if the run's experiment has no such field.
    cells = [[group.bindings.get(name, "—") for group in groups] for name in names]
    rows, columns = names, [group.label for group in groups]
    if len(groups) > _MOST_COLUMNS:
        rows, columns = columns, rows
        cells = [list(row) for row in zip(*cells)]
    table.add_column("run" if rows is not names else "binding", overflow="fold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row, texts in zip(rows, cells):
        table.add_row(row, *texts)
    return table


def _last(values: np.ndarray) -> float | None:
    return float(values[-1]) if len(values) else None


def _lowest(values: np.ndarray) -> float | None:
    return float(np.nanmin(values)) if np.isfinite(values).any() else None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
