"""Runs side by side: a table of figures, what differs in their configs, and curves."""

import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fmjax.config.render import differences
from fmjax.errors import UserError, suggest
from fmjax.run.directory import stored_experiment
from fmjax.training.experiment import Experiment
from fmjax.training.reporting import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A legend names this many differences of a run at most; the table has all of them.
_LEGEND_DIFFERENCES = 3
_PLAIN_WIDTH = 160  # columns of the table where there is no terminal to ask


def compare(
    run_dirs: Sequence[str | os.PathLike],
    picture: pathlib.Path,
    metric: str = "loss",
    trust: bool = False,
) -> None:
    """Prints what runs reached and how their configs differ, and writes their curves.

    Args:
      run_dirs: the run directories; configs are compared with the first one's.
      picture: the image to write; its suffix tells the format.
      metric: drawn over steps, as metrics.jsonl names it.
      trust: the stored configs may import code.

    Raises:
      UserError: for a directory without metrics, or a metric that nobody logged.
    """
    runs = _read(run_dirs, trust)
    figure = _draw(runs, metric)
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    console = Console(width=width, highlight=False)
    console.print(_figures(runs))
    if len(runs) > 1:
        console.print(_bindings(runs))
    try:
        pathlib.Path(picture).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {picture}: cannot be written: {error}.") from None
    console.print(f"curves of {metric}: {picture}", markup=False)


def curves(
    run_dirs: Sequence[str | os.PathLike], metric: str = "loss", trust: bool = False
) -> "Figure":
    """The curves of runs over steps, or where their batches differ, tokens or images.

    Args and errors as in `compare`.
    """
    return _draw(_read(run_dirs, trust), metric)


@dataclasses.dataclass(frozen=True)
class _Run:
    label: str
    file: pathlib.Path
    experiment: Experiment
    lines: list[dict[str, Any]]
    # (binding, the first run's value, this run's), and the part that changes results.
    differences: list[tuple[str, str | None, str | None]]
    telling: list[tuple[str, str | None, str | None]]

    def split(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["split"] == name]

    def series(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values where the metric was logged; NaN where it was not finite."""
        lines = [line for line in self.split(split) if metric in line]
        return (
            np.array([line["step"] for line in lines], np.int64),
            np.array([line[metric] for line in lines], np.float64),  # null is NaN
        )

    @property
    def unit(self) -> str:
        return self.experiment.objective.unit

    @property
    def units_per_step(self) -> float:
        return _mean([line[self.unit] for line in self.split("train")])

    @property
    def seconds(self) -> float:
        """Time in steps and evaluations, compiling included; not loading and saving."""
        total, before = 0.0, 0
        for line in self.split("train"):
            total += line["step_seconds"] * (line["step"] - before)
            before = line["step"]
        return total + sum(line.get("seconds", 0) for line in self.split("validation"))


def _read(directories: Sequence[str | os.PathLike], trust: bool) -> list[_Run]:
    folders = [pathlib.Path(d).expanduser().absolute() for d in directories]
    experiments = [stored_experiment(folder, trust) for folder in folders]
    names = [folder.name for folder in folders]
    runs = []
    for given, folder, experiment in zip(directories, folders, experiments):
        file = folder / metrics.FILE
        try:
            lines = metrics.read(folder)
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror}); is this a trained run?"
            ) from None
        if not lines:
            raise UserError(f"{file} has no lines yet: the run has logged no step.")
        runs.append(
            _Run(
                label=folder.name if names.count(folder.name) == 1 else str(given),
                file=file,
                experiment=experiment,
                lines=lines,
                differences=differences(experiments[0], experiment),
                telling=differences(experiments[0], experiment, runtime=False),
            )
        )
    return runs


def _figures(runs: list[_Run]) -> Table:
    table = Table(title="runs")
    table.add_column("run", overflow="fold")
    for name in (
        "step",
        "train loss",
        "best validation",
        "last validation",
        "bits/byte",
        "speed",
        "time",
    ):
        table.add_column(name, justify="right")
    for run in runs:
        steps, losses = run.series("validation", "loss")
        best = "—"
        if np.isfinite(losses).any():
            lowest = int(np.nanargmin(losses))
            best = f"{losses[lowest]:.4f} at {steps[lowest]}"
        # The median: a first step compiles, and a machine has other things to do.
        speed = [line[f"{run.unit}_per_second"] for line in run.split("train")]
        table.add_row(
            run.label,
            str(max(line["step"] for line in run.lines)),
            _last(run.series("train", "loss")[1]),
            best,
            _last(losses),
            _last(run.series("validation", "bits_per_byte")[1]),
            f"{np.median(speed):,.0f} {run.unit}/s" if speed else "—",
            _duration(run.seconds),
        )
    return table


def _bindings(runs: list[_Run]) -> Table | str:
    first: dict[str, str | None] = {}
    others: list[dict[str, str | None]] = []
    for run in runs[1:]:
        first |= {name: was for name, was, _ in run.differences}
        others.append({name: now for name, _, now in run.differences})
    if not first:
        return "The configs are the same."
    table = Table(title="bindings that differ")
    table.add_column("binding", overflow="fold")
    for run in runs:
        table.add_column(run.label, overflow="fold")
    for name in sorted(first):
        values = [first[name], *(own.get(name, first[name]) for own in others)]
        # "—": a run whose experiment has no such binding.
        table.add_row(name, *("—" if value is None else value for value in values))
    return table


def _draw(runs: list[_Run], metric: str) -> "Figure":
    # Here, because it takes a second that nothing else in this room needs. No pyplot:
    # a figure of its own is never shown or kept by anyone else.
    from matplotlib.figure import Figure

    for run in runs:
        known = {name for line in run.lines for name in line} - {"step", "split"}
        if metric not in known:
            raise UserError(
                f"{run.file} has no metric {metric!r}.{suggest(metric, known)} It has "
                f"{', '.join(sorted(known))}."
            )
    sizes = np.array([run.units_per_step for run in runs])
    units = {run.unit for run in runs}
    over_units = len(units) == 1 and bool(sizes.max() > 1.01 * sizes.min())
    figure = Figure(figsize=(7.5, 4.8), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    handles = []
    for index, run in enumerate(runs):
        scale = run.units_per_step if over_units else 1
        color = f"C{index % 10}"
        steps, values = run.series("train", metric)
        thin = {"color": color, "linewidth": 0.9, "alpha": 0.6}
        (line,) = axes.plot(steps * scale, values, **thin)
        checked, values = run.series("validation", metric)
        if len(checked):
            thick = {"color": color, "linewidth": 2.2, "marker": "o", "markersize": 5}
            (line,) = axes.plot(checked * scale, values, **thick)
        line.set_label(_legend(run, runs))
        handles.append(line)
    axes.set_xlabel(units.pop() if over_units else "step")
    axes.set_ylabel(metric)
    axes.set_title("thin: training, thick: validation", fontsize=9, color="0.35")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes, where no curve can run under it.
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    return figure


def _legend(run: _Run, runs: list[_Run]) -> str:
    def of(other: _Run) -> list:
        return other.telling or other.differences

    names = list(dict.fromkeys(name for other in runs for name, _, _ in of(other)))
    own = {name: now for name, _, now in run.differences}
    first = {name: was for other in runs for name, was, _ in other.differences}
    said = [
        f"{name} = {own.get(name, first[name])}"
        for name in names[:_LEGEND_DIFFERENCES]
        if own.get(name, first[name]) is not None
    ]
    if len(names) > _LEGEND_DIFFERENCES:
        said.append("…")
    return f"{run.label}: {', '.join(said)}" if said else run.label


def _last(values: np.ndarray) -> str:
    return f"{values[-1]:.4f}" if len(values) else "—"


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
