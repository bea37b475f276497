"""The figure of a ladder: the runs, the law, the prediction and how it came out."""

import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from fmjax.evaluation.curve_plots import style_axes
from fmjax.scaling.ladder import GRADE, LAW, POINTS, PREDICTION
from fmjax.scaling.law_files import find_law
from fmjax.scaling.points import read_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLOPS = 6.0


def plot_ladder(folder: pathlib.Path) -> "Figure":
    """Losses over FLOPs (6 N D): points of each size, the law, and the target.

    Args:
      folder: of a ladder that was graded.
    """
    import matplotlib
    from matplotlib.figure import Figure

    points = read_points(folder / POINTS)
    law = find_law(str(folder / LAW)).law
    prediction = json.loads((folder / PREDICTION).read_text())
    grade = json.loads((folder / GRADE).read_text())
    figure = Figure(figsize=(7, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    sizes = np.unique(points.parameters)
    scale = matplotlib.colors.LogNorm(sizes[0], prediction["of"]["parameters"])
    colors = matplotlib.cm.ScalarMappable(scale, "viridis_r")
    for size in sizes:
        of_size = points.take(points.parameters == size)
        color = colors.to_rgba(size)
        tokens = np.geomspace(of_size.tokens.min(), of_size.tokens.max(), 50)
        axes.plot(_FLOPS * size * tokens, law.loss(size, tokens), color=color)
        label = f"{size / 1e6:.2g}M parameters"
        axes.plot(of_size.flops, of_size.loss, "o", color=color, label=label)
    size, tokens = prediction["of"]["parameters"], prediction["tokens"]
    x, y = _FLOPS * size * tokens, prediction["loss"]
    bars = [[y - prediction["low"]], [prediction["high"] - y]]
    label = f"predicted, {size / 1e6:.2g}M"
    axes.errorbar(x, y, bars, fmt="_", color="C3", capsize=5, label=label)
    axes.plot(x, grade["measured"], "*", color="k", markersize=9, label="measured")
    axes.set(xscale="log", xlabel="FLOPs (6 N D)", ylabel="loss (nats a token)")
    axes.set_title(f"{law.form}: predicted within {abs(grade['error']):.2%}")
    style_axes(axes, "0.9")
    axes.legend(frameon=False, fontsize=8)
    return figure
