"""The curves of runs that are compared; seeds of one config as a mean with a band."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fmjax.errors import UserError, suggest
from fmjax.evaluation.compared_runs import (
    OVER,
    Group,
    Over,
    changes_results,
    differing,
)
from fmjax.evaluation.curve_plots import Series, draw_curves, style_axes
from fmjax.evaluation.intervals import band_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maximum number of differences of a run in the legend; the table has all of them.
_LEGEND_DIFFERENCES = 3


def draw(groups: Sequence[Group], metric: str, over: Over | None) -> "Figure":
    """Draws the groups' curves, on axes of their own for each unit.

    Args:
      groups: of runs.
      metric: name of the metric.
      over: what the curves are drawn over; None for steps, or for tokens or images if
        the batch sizes differ.

    Raises:
      UserError: a run has not logged the metric, or cannot be drawn over that.
    """
    # Imported here, since it takes a second. Without pyplot, no global state keeps the
    # figure.
    from matplotlib.figure import Figure

    if over not in (None, *OVER):
        raise UserError(
            f"--over {over}: expected one of {', '.join(OVER)}.{suggest(over, OVER)}"
        )
    for run in (run for group in groups for run in group.runs):
        known = {name for line in run.lines for name in line} - {"step", "split"}
        if metric not in known:
            raise UserError(
                f"{run.file} has no metric {metric!r}.{suggest(metric, known)} "
                f"Expected one of {', '.join(sorted(known))}."
            )
    units = list(dict.fromkeys(group.runs[0].unit for group in groups))
    size = (7.5, 4.8 * len(units))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    handles = []
    for axes, unit in zip(figure.subplots(len(units), squeeze=False)[:, 0], units):
        same = [(i, group) for i, group in enumerate(groups) if _unit(group) == unit]
        chosen = over or _default_axis([group for _, group in same])
        for index, group in same:
            line = _draw_group(axes, group, metric, chosen, f"C{index % 10}")
            line.set_label(_legend(group, groups))
            handles.append(line)
        axes.set_xlabel("step" if chosen == "steps" else _AXES.get(chosen, chosen))
        axes.set_ylabel(metric if len(units) == 1 else f"{metric} ({unit})")
        style_axes(axes, grid="0.9")
    title = "thin: training, thick: validation"
    if any(len(group.runs) > 1 for group in groups):
        title += "; band: 95% interval of the mean over seeds"
    figure.axes[0].set_title(title, fontsize=9, color="0.35")
    # Below the axes, where it covers no curve.
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    return figure


_AXES = {"flops": "FLOPs", "seconds": "seconds of steps and evaluations"}


def _unit(group: Group) -> str:
    return group.runs[0].unit


def _default_axis(groups: Sequence[Group]) -> Over:
    """Steps, or the unit if the batch sizes differ."""
    sizes = np.array([run.units_per_step for group in groups for run in group.runs])
    unit = _unit(groups[0])
    differs = bool(sizes.max() > 1.01 * sizes.min())
    return unit if differs and unit in OVER else "steps"


def _draw_group(axes, group: Group, metric: str, over: Over, color: str):
    """Draws the curves of a group; returns the line for the legend."""
    of = functools.partial(_mean_series, group, metric=metric, over=over)
    training, _ = of("train")
    validation, half = of("validation")
    if half is not None and len(half):
        x, mean = validation
        axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.2, lw=0)
    elif len(group.runs) > 1:
        half = of("train")[1]
        x, mean = training
        axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.2, lw=0)
    return draw_curves(axes, training, validation, color)


def _mean_series(
    group: Group, split: str, *, metric: str, over: Over
) -> tuple[Series, np.ndarray | None]:
    """(x and means, half of the interval's width) at the steps that all runs have.

    The width is None for a single run.
    """
    found = [(run, *run.series(split, metric)) for run in group.runs]
    if len(found) == 1:
        ((run, steps, values),) = found
        return (run.position(steps, over), values), None
    steps = functools.reduce(np.intersect1d, [steps for _, steps, _ in found])
    if not len(steps):
        return (steps, np.zeros(0)), np.zeros(0)
    values = np.stack([v[np.searchsorted(s, steps)] for _, s, v in found])
    x = np.mean([run.position(steps, over) for run, *_ in found], axis=0)
    mean, half = band_of(values)
    return (x, mean), half


def _legend(group: Group, groups: Sequence[Group]) -> str:
    names = differing(groups)
    names = [name for name in names if changes_results(name)] or names
    bindings = group.bindings
    shown = [
        f"{name} = {bindings[name]}"
        for name in names[:_LEGEND_DIFFERENCES]
        if name in bindings
    ]
    if len(names) > _LEGEND_DIFFERENCES:
        shown.append("…")
    count = f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    text = f": {', '.join(shown)}" if shown else ""
    return f"{group.label}{text}{count}"
