"""Confidence intervals of means over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95
# What tables say of their figures.
NOTE = "mean over seeds ± half of its 95% interval (Student's t)"


class Interval(NamedTuple):
    """A mean and half the width of its 95% interval.

    Attributes:
      mean: of the values; NaN without any.
      half: half the width; None for fewer than two values.
    """

    mean: float
    half: float | None

    def __str__(self):
        half = "" if self.half is None else f" ± {self.half:.4f}"
        return f"{self.mean:.4f}{half}"


def interval_of(values: Sequence[float]) -> Interval:
    """The mean of a few values, with the interval of `band_of`."""
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else float("nan"), None)
    mean, half = band_of(np.asarray(values, np.float64)[:, None])
    return Interval(float(mean[0]), float(half[0]))


def band_of(
    values: Float[np.ndarray, "N T"],
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Means over N ≥ 2 runs, and half the widths of Student's t intervals for them.

    These are t(0.975, N - 1) · s / √N. The values of runs are taken for independent
    draws of a normal distribution, as those of seeds nearly are. A bootstrap's interval
    would be too narrow for a few: it cannot leave their range.
    """
    # scipy.stats takes half a second to import.
    from scipy import stats

    count = len(values)
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return values.mean(0), quantile * values.std(0, ddof=1) / np.sqrt(count)
