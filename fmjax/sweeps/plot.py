"""The figure of a sweep: its metric over the values of a binding, or trial by trial."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fmjax.evaluation.curve_plots import style_axes
from fmjax.evaluation.frames import literal
from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.results import FINISHED, Row, caption, shown
from fmjax.sweeps.space import Point, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Values that the axis of a plot names one by one, and lines that a reader tells apart.
_MOST_TICKS = 8
_MOST_LINES = 8


def plot_sweep(config: SweepConfig, rows: Sequence[Row]) -> "Figure":
    """Draws the metric of each finished trial, with its 95% interval over seeds.

    Over the binding with the most values that are numbers, a line for each combination
    of the others, if there are at most eight; else trial by trial. Small dots are the
    seeds.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.state == FINISHED]
    axis = _axis(config, rows)
    height = 4.0 if axis else 1.2 + 0.32 * len(rows)
    figure = Figure(figsize=(7, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    if axis:
        _draw_over_values(axes, config, rows, axis)
    else:
        _draw_trials(axes, config, rows)
    figure.suptitle(caption(config), fontsize=9, color="0.35")
    style_axes(axes, grid="0.9")
    return figure


def _axis(config: SweepConfig, rows: Sequence[Row]) -> str | None:
    """The binding to draw over; None to draw trial by trial."""
    values = {name: {row.point[name] for row in rows} for name in config.space}
    numbers = {
        name: len(texts)
        for name, texts in values.items()
        if all(type(literal(text)) in (int, float) for text in texts)
    }
    if not rows or not numbers:
        return None
    axis = max(numbers, key=lambda name: numbers[name])
    lines = {_others(row.point, axis) for row in rows}
    return axis if len(lines) <= _MOST_LINES else None


def _others(point: Point, axis: str) -> tuple[tuple[str, str], ...]:
    """The values of a point but that of the axis."""
    return tuple((name, text) for name, text in point.items() if name != axis)


def _draw_over_values(
    axes: "Axes", config: SweepConfig, rows: Sequence[Row], axis: str
) -> None:
    names = short_names(config.space)
    # In the order of the trials, as the space lists its values.
    by_trial = sorted(rows, key=lambda row: row.trial)
    lines: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in by_trial:
        lines.setdefault(_others(row.point, axis), []).append(row)
    ticks = np.unique([_number(row, axis) for row in rows])
    for color, (others, of_line) in enumerate(lines.items()):
        of_line.sort(key=lambda row: _number(row, axis))
        x = np.array([_number(row, axis) for row in of_line])
        means, halves = _figures(of_line)
        label = ", ".join(f"{names[name]} = {shown(text)}" for name, text in others)
        how = {"fmt": "o-", "color": f"C{color}", "capsize": 4}
        axes.errorbar(x, means, halves, label=label or None, **how)
        dots = {"color": f"C{color}" if others else "0.45", "markersize": 5}
        for value, row in zip(x, of_line):
            for run in row.runs:
                axes.plot(value, run.value, ".", zorder=3, **dots)
    if ticks[0] > 0 and ticks[-1] >= 4 * ticks[0]:
        axes.set_xscale("log")
    if len(ticks) <= _MOST_TICKS:
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks], minor=False)
        axes.minorticks_off()
    if len(lines) > 1:
        axes.legend(fontsize=9)
    axes.set_xlabel(axis)
    axes.set_ylabel(config.metric)


def _draw_trials(axes: "Axes", config: SweepConfig, rows: Sequence[Row]) -> None:
    means, halves = _figures(rows)
    places = -np.arange(len(rows))
    axes.errorbar(means, places, xerr=halves, fmt="o", color="C0", capsize=4)
    for place, row in zip(places, rows):
        for run in row.runs:
            axes.plot(run.value, place, ".", color="0.45", markersize=5, zorder=3)
    names = short_names(config.space)
    labels = [
        ", ".join(f"{names[n]} = {shown(text)}" for n, text in row.point.items())
        for row in rows
    ]
    axes.set_yticks(places, labels)
    axes.set_ylim(0.5 - len(rows), 0.5)
    axes.set_xlabel(config.metric)


def _number(row: Row, axis: str) -> float:
    return float(literal(row.point[axis]))


def _figures(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Means, and half the widths of their intervals; 0 for a single seed."""
    metrics = [row.metric for row in rows if row.metric is not None]
    means = np.array([metric.mean for metric in metrics])
    return means, np.array([metric.half or 0.0 for metric in metrics])
