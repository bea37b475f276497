"""Confidence intervals of means over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


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
    """The mean, and Student's t interval for it: t(0.975, n - 1) · s / √n.

    The values are taken for independent draws of a normal distribution, as results of
    seeds nearly are. Of few values a bootstrap's interval would be too narrow: it
    cannot leave their range.
    """
    from scipy import stats

    array = np.asarray(values, np.float64)
    if not len(array):
        return Interval(float("nan"), None)
    mean, count = float(array.mean()), len(array)
    if count < 2:
        return Interval(mean, None)
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return Interval(mean, quantile * float(array.std(ddof=1)) / count**0.5)
