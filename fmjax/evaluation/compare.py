"""Comparing runs: a table of results, the differences of the configs, and curves."""

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
from fmjax.evaluation.curve_plots import draw_curves, style_axes
from fmjax.objectives.terms import UNITS
from fmjax.run.directory import stored_config, stored_experiment
from fmjax.storage.paths import as_path
from fmjax.training.reporting import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maximum number of differences of a run in the legend; the table has all of them.
_LEGEND_DIFFERENCES = 3
_PLAIN_WIDTH = 160  # columns of the table if the output is not a terminal


def compare(
    run_dirs: Sequence[str | os.PathLike],
    picture: pathlib.Path | None = None,
    metric: str = "loss",
    trust: bool = False,
) -> None:
    """Prints the results of runs and the differences of their configs; draws curves.

    Args:
      run_dirs: the run directories.
      picture: the image file to write; its suffix selects the format. None for none.
      metric: name of the metric to draw, as in metrics.jsonl.
      trust: whether the stored configs may import code. If not, a config that imports
        code is compared as the stored text.

    Raises:
      UserError: a directory has no metrics, or a run has not logged the metric.
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
        raise UserError(f"--plot {picture} cannot be written: {error}.") from None
    console.print(f"curves of {metric}: {picture}", markup=False)


def curves(
    run_dirs: Sequence[str | os.PathLike], metric: str = "loss", trust: bool = False
) -> "Figure":
    """Draws the curves of runs over steps.

    If the batch sizes differ, curves are drawn over tokens or images. Runs with other
    units (tokens, images, pairs) get separate axes, since their losses cannot be
    compared.

    Args:
      run_dirs: the run directories.
      metric: name of the metric to draw, as in metrics.jsonl.
      trust: whether the stored configs may import code.

    Raises:
      UserError: as in `compare`.
    """
    return _draw(_read(run_dirs, trust), metric)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run directory that is compared.

    Attributes:
      label: name of the run in tables and legends.
      file: its metrics.jsonl.
      lines: the lines of that file.
      bindings: maps "OWNER.FIELD" to gin text.
      note: why the stored text of the config is compared; "" if it is not.
    """

    label: str
    file: pathlib.Path
    lines: list[dict[str, Any]]
    bindings: dict[str, str]
    note: str = ""

    def split(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["split"] == name]

    def series(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a metric; values that were not finite are NaN."""
        lines = [line for line in self.split(split) if metric in line]
        return (
            np.array([line["step"] for line in lines], np.int64),
            np.array([line[metric] for line in lines], np.float64),  # null is NaN
        )

    @property
    def unit(self) -> str:
        """The unit over which the loss is averaged, such as "tokens"."""
        logged = {name for line in self.split("train") for name in line}
        return next((unit for unit in UNITS if unit in logged), "steps")

    @property
    def units_per_step(self) -> float:
        return _mean([line.get(self.unit, 1) for line in self.split("train")])

    @property
    def seconds(self) -> float:
        """Seconds of steps, compilation and evaluations; not of loading and saving."""
        total, before = 0.0, 0
        for line in self.split("train"):
            total += line["step_seconds"] * (line["step"] - before)
            before = line["step"]
        return total + sum(line.get("seconds", 0) for line in self.split("validation"))


def _read(directories: Sequence[str | os.PathLike], trust: bool) -> list[_Run]:
    folders = [as_path(directory) for directory in directories]
    runs = []
    for folder, label in zip(folders, _labels(folders)):
        bindings, note = _stored_bindings(folder, trust)
        file = folder / metrics.FILE
        try:
            lines = metrics.read(folder)
        except OSError as error:
            raise UserError(
                f"{file} cannot be read: {error.strerror or 'no such file'}; expected "
                "the directory of a trained run."
            ) from None
        if not lines:
            raise UserError(f"{file} is empty: the run has not logged a step yet.")
        runs.append(_Run(label, file, lines, bindings, note))
    return runs


def _labels(folders: list[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that distinguish the folders."""
    longest = max(len(folder.parts) for folder in folders)
    for count in range(1, longest + 1):
        labels = ["/".join(folder.parts[-count:]) for folder in folders]
        if len({*labels}) == len({*folders}):
            break
    return labels


def _stored_bindings(folder: pathlib.Path, trust: bool) -> tuple[dict[str, str], str]:
    """(bindings of a run, note why only the stored text is compared or '').

    Raises:
      UserError: the folder is not a run directory.
    """
    stored = stored_config(folder)
    note = ""
    try:
        bindings = bindings_of(stored_experiment(folder, trust))
    except UserError as error:
        # The run imports code, or is of a version that is too old or too new.
        note = f"{folder}: the stored text of the config is compared: {error}"
        bindings = stored.bindings
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
        # The median, since the first step compiles and other processes may interfere.
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
        # "—" if the run's experiment has no such field.
        table.add_row(name, *(run.bindings.get(name, "—") for run in runs))
    return table


def _differing(runs: list[_Run]) -> list[str]:
    """Names of the bindings that are not equal in all runs."""
    names = {name for run in runs for name in run.bindings}
    return [n for n in sorted(names) if len({run.bindings.get(n) for run in runs}) > 1]


def _draw(runs: list[_Run], metric: str) -> "Figure":
    # Imported here, since it takes a second. Without pyplot, no global state keeps the
    # figure.
    from matplotlib.figure import Figure

    for run in runs:
        known = {name for line in run.lines for name in line} - {"step", "split"}
        if metric not in known:
            raise UserError(
                f"{run.file} has no metric {metric!r}.{suggest(metric, known)} "
                f"Expected one of {', '.join(sorted(known))}."
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
            steps, values = run.series("train", metric)
            checked, measured = run.series("validation", metric)
            training, validation = (steps * scale, values), (checked * scale, measured)
            handles.append(draw_curves(axes, training, validation, f"C{index % 10}"))
            handles[-1].set_label(_legend(run, runs))
        axes.set_xlabel(unit if over_units else "step")
        axes.set_ylabel(metric if len(units) == 1 else f"{metric} ({unit})")
        style_axes(axes, grid="0.9")
    figure.axes[0].set_title(
        "thin: training, thick: validation", fontsize=9, color="0.35"
    )
    # Below the axes, where it covers no curve.
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    return figure


def _legend(run: _Run, runs: list[_Run]) -> str:
    names = _differing(runs)
    names = [name for name in names if _changes_results(name)] or names
    shown = [
        f"{name} = {run.bindings[name]}"
        for name in names[:_LEGEND_DIFFERENCES]
        if name in run.bindings
    ]
    if len(names) > _LEGEND_DIFFERENCES:
        shown.append("…")
    return f"{run.label}: {', '.join(shown)}" if shown else run.label


def _changes_results(binding: str) -> bool:
    """Whether a binding affects what a run computes or which data it reads."""
    owner, field = binding.rsplit("/", 1)[-1].split(".")
    if owner not in CLASSES:
        return True
    metadata = {f.name: f.metadata for f in fields_of(CLASSES[owner])}.get(field, {})
    # Paths of datasets matter; folders of caches do not.
    if metadata.get("path"):
        return owner not in ("data", "images", "train")
    return not metadata.get("runtime")


def _last(values: np.ndarray) -> str:
    return f"{values[-1]:.4f}" if len(values) else "—"


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
