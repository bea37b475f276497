"""Curves of one run as SVG that takes its colors from the page around it."""

import html
import io
import itertools
import re
from typing import NamedTuple

import numpy as np

from fmjax.evaluation.curve_plots import Series, draw_curves, style_axes
from fmjax.objectives.terms import UNITS
from fmjax.run.curves import Curves

# Colors that matplotlib writes, and what the page has in their place.
_TEXT, _GRID = "#010203", "#040506"
_LINES = ("#111111", "#222222")
_OF_PAGE = {_TEXT: "currentColor", _GRID: "var(--line)"} | {
    color: f"var(--curve-{number})" for number, color in enumerate(_LINES)
}
_POINTS = 1000  # of a curve
_EXCEPTIONAL = 1.5  # times the range of 98% of the values, if there are many
_MANY = 50
# Metrics that are not of the objective; a tuple is drawn in one plot.
_TECHNICAL = (
    ("learning rate", ("learning_rate",)),
    ("MFU", ("mfu", "causal_mfu")),
    ("step time in seconds (median, 95%)",
     ("step_seconds_p50", "step_seconds_p95")),
    ("share of waiting for data", ("waiting_for_data",)),
    ("goodput", ("goodput",)),
    ("peak memory of a device in GB", ("device_memory_peak",)),
)  # fmt: skip
# What says nothing as a curve, and the loss, which is drawn first.
_NOT_DRAWN = ("time", "epoch", "seconds", "step_seconds", "flops", "loss")
_SCALES = {"device_memory_peak": 1e-9}


class Plot(NamedTuple):
    """A plot of the page.

    Attributes:
      title: what it shows.
      svg: the element, without references to anything else.
      note: what a reader needs to know beside it; "" for nothing.
    """

    title: str
    svg: str
    note: str


def plots(curves: Curves, marks: list[int]) -> list[Plot]:
    """Plots of all that a run has logged: loss, metrics of the objective, the rest.

    Args:
      curves: of the run.
      marks: steps at which it was resumed or went back, drawn as dotted lines.
    """
    found = [_both("loss", curves, marks)]
    drawn = {*_NOT_DRAWN, *itertools.chain(*(names for _, names in _TECHNICAL))}
    drawn |= {f"{unit}{end}" for unit in UNITS for end in _ENDS_OF_UNITS}
    norms = [n for n in curves.names("train") if n.startswith("grad_norm")]
    of_objective = {*curves.names("train"), *curves.names("validation")} - drawn
    loss = curves.series("train", "loss")[1]
    for name in sorted(of_objective - {*norms}):
        same = curves.series("train", name)[1]
        # The only term of an objective is its loss.
        if not np.array_equal(same, loss, equal_nan=True) or not len(loss):
            found.append(_both(name, curves, marks))
    rate = (f"{curves.unit} per second", (f"{curves.unit}_per_second",))
    for title, names in (*((n, (n,)) for n in norms), rate, *_TECHNICAL):
        found.append(_technical(title, names, curves))
    return [plot for plot in found if plot is not None]


_ENDS_OF_UNITS = ("", "_seen", "_per_second", "_per_second_per_device")


def _both(name: str, curves: Curves, marks: list[int]) -> Plot | None:
    """A metric of training and validation."""
    splits = [curves.series(split, name) for split in ("train", "validation")]
    if not any(_is_curve(values) for _, values in splits):
        return None
    figure, axes = _figure()
    draw_curves(axes, _thinned(splits[0]), _thinned(splits[1]), _LINES[0])
    first, last = axes.get_xlim()
    for step in marks:
        if first <= step <= last:
            axes.axvline(step, color=_TEXT, linewidth=0.8, linestyle=":", alpha=0.6)
    note = "Thin: training, thick: validation." if len(splits[1][0]) else ""
    return _plot(figure, axes, name, note, [values for _, values in splits])


def _technical(title: str, names: tuple[str, ...], curves: Curves) -> Plot | None:
    series = {name: curves.series("train", name) for name in names}
    series = {n: s for n, s in series.items() if _is_curve(s[1])}
    if not series:
        return None
    figure, axes = _figure()
    for (name, (steps, values)), color in zip(series.items(), _LINES):
        x, y = _thinned((steps, values * _SCALES.get(name, 1.0)))
        axes.plot(x, y, color=color, linewidth=1.2, label=name)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=_TEXT)
    drawn = [values * _SCALES.get(n, 1.0) for n, (_, values) in series.items()]
    return _plot(figure, axes, title, "", drawn)


def _is_curve(values: np.ndarray) -> bool:
    """Whether there is more than a point to draw."""
    return np.isfinite(values).sum() > 1


def _figure():
    # Imported here, since it takes a second; without pyplot nothing keeps the figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 2.6), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    style_axes(axes, _GRID)
    axes.tick_params(colors=_TEXT)
    axes.spines[:].set_color(_GRID)
    axes.set_xlabel("step", color=_TEXT)
    return figure, axes


def _plot(figure, axes, title: str, note: str, drawn: list[np.ndarray]) -> Plot:
    every = np.concatenate(drawn)
    every = every[np.isfinite(every)]
    low, usual, high = every.min(), np.percentile(every, 98), every.max()
    if len(every) > _MANY and high - low > _EXCEPTIONAL * (usual - low) > 0:
        axes.set_ylim(low - 0.05 * (usual - low), usual + 0.05 * (usual - low))
        note += f" The highest 2% are cut off; the maximum is {high:.4g}."
    return Plot(title, _svg(figure, title), note.strip())


def _svg(figure, title: str) -> str:
    import matplotlib

    written = io.StringIO()
    # Texts stay texts, in the font of the page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=metadata)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    # Styles in an SVG would hold for the whole page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for name in ("height", "width", "xmlns:xlink", "xmlns"):
        text = re.sub(rf'(<svg[^>]*?) {name}="[^"]*"', r"\1", text, count=1)
    for color, of_page in _OF_PAGE.items():
        text = text.replace(color, of_page)
    text = text.replace("xlink:href=", "href=")
    prefix = re.sub(r"\W+", "-", title)
    text = re.sub(r'((?:\bid=|href=)"#?|url\(#)', rf"\g<1>{prefix}-", text)
    label = html.escape(title)  # a metric's name, by whoever wrote the metrics
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _thinned(series: Series) -> Series:
    """At most 2 · _POINTS points: the least and the largest of each part."""
    steps, values = series
    if len(steps) <= 2 * _POINTS:
        return series
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    kept = set()
    for part in parts:
        finite = part[np.isfinite(values[part])]
        if len(finite):
            kept |= {finite[values[finite].argmin()], finite[values[finite].argmax()]}
        else:
            kept.add(part[0])
    at = np.array(sorted(kept))
    return steps[at], values[at]
