"""Curves of training and validation, drawn by matplotlib on given axes."""

import numpy as np

Series = tuple[np.ndarray, np.ndarray]  # x and y [N]


def draw_curves(axes, training: Series, validation: Series, color: str):
    """Draws a metric: training thin, validation thick with markers.

    Args:
      axes: of matplotlib.
      training: x and values; values that are NaN are gaps.
      validation: likewise; may be empty.
      color: of both.

    Returns:
      The line that stands for both in a legend: the last one drawn.
    """
    (line,) = axes.plot(*training, color=color, linewidth=0.9, alpha=0.6)
    if len(validation[0]):
        thick = {"color": color, "linewidth": 2.2, "marker": "o", "markersize": 5}
        (line,) = axes.plot(*validation, **thick)
    return line


def style_axes(axes, grid: str) -> None:
    """Leaves two spines and a grid of a color."""
    axes.grid(color=grid)
    axes.spines[["top", "right"]].set_visible(False)
