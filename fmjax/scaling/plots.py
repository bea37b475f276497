"""Figures of fits and sizes, drawn by matplotlib."""

from typing import TYPE_CHECKING

import numpy as np

from fmjax.errors import UserError
from fmjax.evaluation.curve_plots import style_axes
from fmjax.scaling import frontier
from fmjax.scaling.fit import PERCENTILES, Fit, log_losses
from fmjax.scaling.laws import FLOPS_PER_PARAMETER_AND_TOKEN, LossLaw, SizingLaw
from fmjax.scaling.points import Points
from fmjax.scaling.presets import PRESETS
from fmjax.scaling.sizing import Repetition, Size, loss_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GRID = "0.9"
_SIZES = 400
_BEYOND = 30.0  # times the largest budget up to which the best size is drawn
_SAMPLES = 200  # of the bootstrap, in a band


def plot_fit(fit: Fit, points: Points) -> "Figure":
    """What was fitted on the left, and the best size of each budget on the right."""
    sizing = isinstance(fit.law, SizingLaw)
    figure = _figure(11 if sizing else 5.5)
    axes = figure.subplots(1, 2 if sizing else 1, squeeze=False)[0]
    if fit.method == "isoflop":
        _draw_parabolas(axes[0], points)
    elif fit.method == "envelope":
        _draw_envelope(axes[0], points)
    else:
        _draw_residuals(axes[0], fit.law, points)
    if sizing:
        _draw_best_sizes(axes[1], fit, points)
    for one in axes:
        style_axes(one, _GRID)
        one.set_axisbelow(True)
    return figure


def plot_size(
    fit: Fit, size: Size, repetition: Repetition | None, tolerance: float
) -> "Figure":
    """The loss of every size at the budget, with those that are nearly the best.

    Raises:
      UserError: the law knows the best models alone.
    """
    unique = repetition.unique if repetition else None
    loss, new = loss_of(fit.law, unique), loss_of(fit.law, None)
    if loss is None or new is None:
        raise UserError(
            f"--plot: a law of the form {fit.law.form!r} has no losses of other sizes "
            "than the best."
        )
    figure = _figure(6)
    axes = figure.subplots()
    product = size.flops / FLOPS_PER_PARAMETER_AND_TOKEN
    low, high = size.smallest.parameters / 4, size.largest.parameters * 4
    if size.asked:
        low, high = min(low, size.asked.parameters), max(high, size.asked.parameters)
    N = np.geomspace(low, high, _SIZES)
    label = "repeated tokens" if repetition else fit.law.form
    axes.plot(N, loss(N, product / N), color="C0", label=label)
    if repetition:
        axes.plot(
            N,
            new(N, product / N),
            color="0.6",
            linestyle="--",
            label="new tokens alone",
        )
    span = size.smallest.parameters, size.largest.parameters
    axes.axvspan(*span, color="C0", alpha=0.12, label=f"within {tolerance:.1%}")
    axes.plot(size.best.parameters, size.best.loss, "o", color="C0", label="best")
    if size.asked:
        axes.plot(
            size.asked.parameters, size.asked.loss, "s", color="C3", label="asked for"
        )
    # A model far too large for its budget would flatten all that matters.
    top = 1 + 8 * max(tolerance, 0.005)
    highest = size.best.loss * top
    if size.asked:
        highest = max(highest, size.asked.loss * 1.01)
    axes.set_ylim(None, highest)
    axes.set(xscale="log", xlabel="parameters", ylabel="loss (nats a token)")
    axes.set_title(f"{size.flops:.3g} FLOPs", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    style_axes(axes, _GRID)
    return figure


def _figure(width: float) -> "Figure":
    # Imported here, since it takes a second.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 4.4), layout="constrained", facecolor="white")


def _draw_residuals(axes, law: LossLaw, points: Points) -> None:
    percent = 100 * np.expm1(np.log(points.loss) - log_losses(law, points))
    drawn = axes.scatter(
        points.flops, percent, c=np.log10(points.parameters), s=14, cmap="viridis"
    )
    axes.figure.colorbar(drawn, ax=axes, label="log₁₀ parameters")
    axes.axhline(0, color="0.5", linewidth=0.9)
    axes.set(xscale="log", xlabel="FLOPs", ylabel="loss above the law (%)")
    axes.set_title(f"{law.form}: {len(points)} points", fontsize=10)


def _draw_parabolas(axes, points: Points) -> None:
    import matplotlib

    found = frontier.parabolas(points)
    scale = matplotlib.colors.LogNorm(found[0].flops, found[-1].flops)
    colors = matplotlib.cm.ScalarMappable(scale, "viridis")
    for parabola in found:
        color, N = colors.to_rgba(parabola.flops), parabola.points.parameters
        axes.plot(N, parabola.points.loss, ".", color=color)
        x = np.geomspace(N.min(), N.max(), _SIZES)
        distance = np.log(x / parabola.parameters)
        y = parabola.curvature * distance**2 + parabola.loss
        axes.plot(x, y, color=color, linewidth=1)
        if parabola.is_inside:
            axes.plot(parabola.parameters, parabola.loss, "x", color="C3")
    axes.figure.colorbar(colors, ax=axes, label="FLOPs")
    axes.set(xscale="log", xlabel="parameters", ylabel="loss (nats a token)")


def _draw_envelope(axes, points: Points) -> None:
    for name in np.unique(points.run):
        curve = points.take(points.run == name)
        order = np.argsort(curve.flops)
        axes.plot(curve.flops[order], curve.loss[order], color="0.7", linewidth=0.9)
    best = frontier.envelope(points)
    axes.plot(best.flops, best.loss, ".", color="C3", markersize=2.5, label="envelope")
    axes.set(xscale="log", xlabel="FLOPs", ylabel="loss (nats a token)")
    axes.legend(frameon=False, fontsize=9)


def _draw_best_sizes(axes, fit: Fit, points: Points) -> None:
    C = np.geomspace(points.flops.min(), points.flops.max() * _BEYOND, 24)

    def sizes(law):
        return np.array([law.optimum(flops).parameters for flops in C])

    axes.plot(C, sizes(fit.law), color="C0", label="this fit")
    if fit.samples:
        drawn = np.array([sizes(law) for law in fit.samples[:_SAMPLES]])
        band = np.percentile(drawn, PERCENTILES, axis=0)
        axes.fill_between(C, *band, color="C0", alpha=0.2, label="95% interval")
    if fit.method == "isoflop":
        best = frontier.best_of_parabolas(frontier.parabolas(points))
        axes.plot(best.flops, best.parameters, "x", color="C0")
    if fit.method == "envelope":
        best = frontier.envelope(points)
        axes.plot(best.flops, best.parameters, ".", color="C0", markersize=2.5)
    for name, style in (("hoffmann", "--"), ("kaplan", ":")):
        label = f"{name}, published"
        axes.plot(C, sizes(PRESETS[name].law), style, color="0.5", label=label)
    axes.axvline(points.flops.max(), color="0.8", linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="best parameters")
    axes.legend(frameon=False, fontsize=9)
