"""The result of a sweep for notebooks: frames, the best trial, plots."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmjax.evaluation.compare import curves
from fmjax.evaluation.compared_runs import Over
from fmjax.evaluation.curve_plots import style_axes
from fmjax.evaluation.frames import literal, runs
from fmjax.sweeps.config import Asha, SweepConfig
from fmjax.sweeps.folder import SweepFolder
from fmjax.sweeps.results import FINISHED, Row, caption, shown
from fmjax.sweeps.space import short_names
from fmjax.sweeps.sweep import as_space, read_sweep, run_sweep

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Values that the axis of a plot names one by one.
_MOST_TICKS = 8


class Sweep:
    """A sweep that has come to its end.

    Attributes:
      config: of the sweep.
      folder: of the sweep; its runs are in `folder / "trials"`.
      rows: a row for each trial, the best first.
    """

    def __init__(self, config: SweepConfig, folder: pathlib.Path, rows: Sequence[Row]):
        self.config, self.folder, self.rows = config, folder, (*rows,)

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row for each trial, the best first, with its number as index.

        Columns: each binding of the space; the metric, its mean over seeds, under its
        name; `half`, half the width of its 95% interval (Student's t), NaN for a single
        seed; `seeds` that have a result; `state` and `error`.
        """
        import pandas

        metric = self.config.metric
        columns = [*self.config.space, metric, "half", "seeds", "state", "error"]
        cells = [
            [
                *(literal(row.point.get(name)) for name in self.config.space),
                math.nan if row.metric is None else row.metric.mean,
                math.nan if row.metric is None else row.metric.half,
                sum(run.value is not None for run in row.runs),
                row.state,
                row.error,
            ]
            for row in self.rows
        ]
        index = pandas.Index([row.trial for row in self.rows], name="trial")
        found = pandas.DataFrame(cells, index=index, columns=columns)
        return found.astype({metric: float, "half": float})

    @property
    def runs(self) -> "pandas.DataFrame":
        """The frame of `fmjax.runs` of the sweep's runs."""
        return runs(self.folder)

    @property
    def best(self) -> Row | None:
        """The finished trial with the best mean; None if none has finished."""
        return next((row for row in self.rows if row.state == FINISHED), None)

    def run_dirs(self, row: Row) -> list[pathlib.Path]:
        """The run directories of a trial, one for each seed."""
        return [SweepFolder(self.folder).trials / run.name for run in row.runs]

    def plot(self) -> "Figure":
        """Draws the metric of each finished trial, with its 95% interval over seeds.

        Over the values, if one binding with numbers is varied; else a line for each
        trial. Small dots are the seeds.
        """
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if row.state == FINISHED]
        numbers = self._numbers(rows)
        height = 4.0 if numbers else 1.2 + 0.32 * len(rows)
        figure = Figure(figsize=(7, height), layout="constrained", facecolor="white")
        axes = figure.subplots()
        if numbers:
            self._draw_over_numbers(axes, rows, numbers)
        else:
            self._draw_lines(axes, rows)
        figure.suptitle(caption(self.config), fontsize=9, color="0.35")
        style_axes(axes, grid="0.9")
        return figure

    def curves(self, metric: str | None = None, over: Over | None = None) -> "Figure":
        """Draws the curves of all runs, as `fmjax.curves`; None is the metric swept."""
        return curves([self.folder], metric or self.config.metric, over=over)

    def __repr__(self):
        """A summary in a line."""
        best = self.best
        text = f"Sweep({len(self.rows)} trials in {self.folder}"
        if best is None:
            return f"{text}, none finished)"
        values = ", ".join(f"{name}={text}" for name, text in best.point.items())
        return f"{text}, best {self.config.metric} {best.metric} with {values})"

    def _repr_html_(self) -> str:
        """The frame with what its figures are, for notebooks."""
        table = self.frame.reset_index().to_html(index=False)
        return f"{table}<p>{caption(self.config)}</p>"

    def _numbers(self, rows: Sequence[Row]) -> list[float]:
        """The values of the only binding, if they are numbers; else empty."""
        if len(self.config.space) > 1:
            return []
        (name,) = self.config.space
        found = [literal(row.point[name]) for row in rows]
        are_numbers = all(type(value) in (int, float) for value in found)
        return [float(value) for value in found] if are_numbers else []

    def _draw_over_numbers(
        self, axes: "Axes", rows: Sequence[Row], numbers: list[float]
    ) -> None:
        (name,) = self.config.space
        order = np.argsort(numbers)
        x = np.array(numbers)[order]
        means, halves = _figures(rows)
        axes.errorbar(x, means[order], halves[order], fmt="o-", color="C0", capsize=4)
        for value, row in zip(numbers, rows):
            for run in row.runs:
                axes.plot(value, run.value, ".", color="0.45", markersize=5, zorder=3)
        if x.min() > 0 and x.max() >= 4 * x.min():
            axes.set_xscale("log")
        if len(x) <= _MOST_TICKS:
            axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel(self.config.metric)

    def _draw_lines(self, axes: "Axes", rows: Sequence[Row]) -> None:
        means, halves = _figures(rows)
        places = -np.arange(len(rows))
        axes.errorbar(means, places, xerr=halves, fmt="o", color="C0", capsize=4)
        for place, row in zip(places, rows):
            for run in row.runs:
                axes.plot(run.value, place, ".", color="0.45", markersize=5, zorder=3)
        names = short_names(self.config.space)
        labels = [
            ", ".join(f"{names[n]} = {shown(text)}" for n, text in row.point.items())
            for row in rows
        ]
        axes.set_yticks(places, labels)
        axes.set_ylim(0.5 - len(rows), 0.5)
        axes.set_xlabel(self.config.metric)


def sweep(
    config: str | os.PathLike,
    space: Mapping[str, Any] | None = None,
    *,
    folder: str | os.PathLike,
    bindings: Sequence[str] = (),
    seeds: int = 1,
    search: str = "grid",
    trials: int | None = None,
    metric: str = "loss",
    direction: str = "minimize",
    seed: int = 0,
    stopping: Asha | None = None,
    at_once: int = 1,
    gpus_per_run: int | None = None,
    storage: str | None = None,
    trust: bool = False,
) -> Sweep:
    """Trains a config at the points of a space, each run in a process of its own.

    The same call continues a sweep that was interrupted, and returns at once if it has
    finished. Each run is an ordinary run directory in FOLDER/trials.

    Args:
      config: gin file of a run: a path, or a name under configs/. Without `space`, that
        of a sweep, as of `fmjax sweep`; `bindings` then are of the sweep.
      space: binding → values to try, as {"cosine.learning_rate": [1e-3, 3e-3]}, or a
        range, such as fmjax.LogUniform(1e-4, 1e-2). A string is read as on the command
        line.
      folder: of the sweep, new or to continue.
      bindings: NAME=VALUE of every run.
      seeds: runs of each point.
      search: "grid", "random" or "bayesian".
      trials: number of points, but of a grid.
      metric: of the last validation.
      direction: "minimize" or "maximize" the metric.
      seed: of the draws.
      stopping: fmjax.Asha() ends runs that fall behind.
      at_once: number of runs at a time.
      gpus_per_run: CUDA devices of each run.
      storage: Optuna's storage as a URL; None for SQLite in the folder.
      trust: whether the config may import code.

    Raises:
      UserError: a part of the sweep is wrong; raised before anything starts.
    """
    if space is None:
        found, near = read_sweep(config, bindings)
    else:
        near = pathlib.Path.cwd()
        found = SweepConfig(
            os.fspath(config),
            as_space(space),
            bindings=tuple(bindings),
            search=search,
            trials=trials,
            seeds=seeds,
            metric=metric,
            direction=direction,
            seed=seed,
            stopping=stopping,
            at_once=at_once,
            gpus_per_run=gpus_per_run,
            storage=storage,
        )
    rows = run_sweep(found, folder, near, trust=trust)
    return Sweep(found, SweepFolder(folder).path, rows)


def _figures(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Means, and half the widths of their intervals; 0 for a single seed."""
    metrics = [row.metric for row in rows if row.metric is not None]
    means = np.array([metric.mean for metric in metrics])
    return means, np.array([metric.half or 0.0 for metric in metrics])
