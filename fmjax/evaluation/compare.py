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

from fmjax.config.registry import CLASSES
from fmjax.config.render import bindings_of
from fmjax.configurable import fields_of
from fmjax.errors import UserError, suggest
from fmjax.objectives.terms import UNITS
from fmjax.run.directory import stored_config, stored_experiment
from fmjax.training.reporting import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A legend names this many differences of a run at most; the table has all of them.
_LEGEND_DIFFERENCES = 3
_PLAIN_WIDTH = 160  # columns of the table where there is no terminal to ask


def compare(
    run_dirs: Sequence[str | os.PathLike],
    picture: pathlib.Path | None = None,
    metric: str = "loss",
    trust: bool = False,
) -> None:
    """Prints what runs reached and how their configs differ, and draws their curves.

    Args:
      run_dirs: the run directories; configs are compared with the first one's.
      picture: the image to write, whose suffix tells the format; None writes none.
      metric: drawn over steps, as metrics.jsonl names it.
      trust: the stored configs may import code. Without, the config of a run with own
        code is compared as the text that was stored.

    Raises:
      UserError: for a directory without metrics, or a metric that nobody logged.
    """
    runs = _read(run_dirs, trust)
    figure = None if picture is None else _draw(runs, metric)
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    console = Console(width=width, highlight=False)
    console.print(_figures(runs))
    if len(runs) > 1:
        console.print(_bindings(runs))
        for run in runs:
            if run.note:
                console.print(run.note, markup=False, soft_wrap=True)
    if figure is None:
        return
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

    Runs that count in other units (tokens, images, pairs) have axes of their own: a
    loss of one is no loss of the other.

    Args and errors as in `compare`.
    """
    return _draw(_read(run_dirs, trust), metric)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run as its directory tells of it.

    Attributes:
      label: what it is called here.
      file: its metrics.jsonl.
      lines: of that file.
      bindings: "OWNER.FIELD" → gin text.
      note: says why bindings are those that were stored, where they are.
    """

    label: str
    file: pathlib.Path
    lines: list[dict[str, Any]]
    bindings: dict[str, str]
    note: str = ""

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
        """What it counts: the loss is a mean over these."""
        logged = {name for line in self.split("train") for name in line}
        return next((unit for unit in UNITS if unit in logged), "steps")

    @property
    def units_per_step(self) -> float:
        return _mean([line.get(self.unit, 1) for line in self.split("train")])

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
    runs = []
    for folder, label in zip(folders, _labels(folders)):
        bindings, note = _stored_bindings(folder, trust)
        file = folder / metrics.FILE
        try:
            lines = metrics.read(folder)
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror}); is this a trained run?"
            ) from None
        if not lines:
            raise UserError(f"{file} has no lines yet: the run has logged no step.")
        runs.append(_Run(label, file, lines, bindings, note))
    return runs


def _labels(folders: list[pathlib.Path]) -> list[str]:
    """The last names of paths, as many of them as tell the folders apart."""
    most = max(len(folder.parts) for folder in folders)
    for count in range(1, most + 1):
        labels = ["/".join(folder.parts[-count:]) for folder in folders]
        if len({*labels}) == len({*folders}):
            break
    return labels


def _stored_bindings(folder: pathlib.Path, trust: bool) -> tuple[dict[str, str], str]:
    """A run's bindings, and why they are no more than what was stored, or ''.

    Raises:
      UserError: it is no run directory.
    """
    stored = stored_config(folder)
    note = ""
    try:
        bindings = bindings_of(stored_experiment(folder, trust))
    except UserError as error:
        # Of a run with own code, or of a version that is too old or too new.
        bindings, note = stored.bindings, f"{folder}: compared as stored: {error}"
    return {".".join(key): value for key, value in bindings.items()}, note


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
        speed = [line.get(f"{run.unit}_per_second") for line in run.split("train")]
        speed = [value for value in speed if value is not None]
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
    names = _differing(runs)
    if not names:
        return "The configs are the same."
    table = Table(title="bindings that differ")
    table.add_column("binding", overflow="fold")
    for run in runs:
        table.add_column(run.label, overflow="fold")
    for name in names:
        # "—": a run whose experiment has no such binding.
        table.add_row(name, *(run.bindings.get(name, "—") for run in runs))
    return table


def _differing(runs: list[_Run]) -> list[str]:
    """Bindings that are not the same in all runs."""
    names = {name for run in runs for name in run.bindings}
    return [n for n in sorted(names) if len({run.bindings.get(n) for run in runs}) > 1]


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
    units = list(dict.fromkeys(run.unit for run in runs))
    size = (7.5, 4.8 * len(units))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    handles = []
    for axes, unit in zip(figure.subplots(len(units), squeeze=False)[:, 0], units):
        same = [(i, run) for i, run in enumerate(runs) if run.unit == unit]
        sizes = np.array([run.units_per_step for _, run in same])
        over_units = bool(sizes.max() > 1.01 * sizes.min())
        for index, run in same:
            scale = run.units_per_step if over_units else 1
            handles.append(_draw_run(axes, run, metric, scale, f"C{index % 10}"))
            handles[-1].set_label(_legend(run, runs))
        axes.set_xlabel(unit if over_units else "step")
        axes.set_ylabel(metric if len(units) == 1 else f"{metric} ({unit})")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_title(
        "thin: training, thick: validation", fontsize=9, color="0.35"
    )
    # Below the axes, where no curve can run under it.
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    return figure


def _draw_run(axes, run: _Run, metric: str, scale: float, color: str):
    """Draws one run's curves; returns the line that stands for it in the legend."""
    steps, values = run.series("train", metric)
    thin = {"color": color, "linewidth": 0.9, "alpha": 0.6}
    (line,) = axes.plot(steps * scale, values, **thin)
    checked, values = run.series("validation", metric)
    if len(checked):
        thick = {"color": color, "linewidth": 2.2, "marker": "o", "markersize": 5}
        (line,) = axes.plot(checked * scale, values, **thick)
    return line


def _legend(run: _Run, runs: list[_Run]) -> str:
    names = _differing(runs)
    names = [name for name in names if _changes_results(name)] or names
    said = [
        f"{name} = {run.bindings[name]}"
        for name in names[:_LEGEND_DIFFERENCES]
        if name in run.bindings
    ]
    if len(names) > _LEGEND_DIFFERENCES:
        said.append("…")
    return f"{run.label}: {', '.join(said)}" if said else run.label


def _changes_results(binding: str) -> bool:
    """Whether a binding tells what a run computes, or what it reads."""
    owner, field = binding.rsplit("/", 1)[-1].split(".")
    if owner not in CLASSES:
        return True
    told = {f.name: f.metadata for f in fields_of(CLASSES[owner])}.get(field, {})
    # A path of what is read tells runs apart; where caches lie does not.
    if told.get("path"):
        return owner not in ("data", "images", "train")
    return not told.get("runtime")


def _last(values: np.ndarray) -> str:
    return f"{values[-1]:.4f}" if len(values) else "—"


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
