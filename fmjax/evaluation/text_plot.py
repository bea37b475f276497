"""Curves in a terminal, drawn with the dots of Unicode's Braille patterns."""

import numpy as np

# The bit of each dot of a Braille pattern, by row and column.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BLANK = 0x2800
# From which size on a number is given in which multiple.
_PREFIXES = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
# Values above this percentile are drawn at the top, so that the first losses of a run
# do not press the rest into a line.
_TOP_PERCENTILE = 98.0


def plot(steps: np.ndarray, values: np.ndarray, width: int, height: int) -> list[str]:
    """Draws a curve with the labels of its lowest and highest value on the left.

    Args:
      steps: int64 [N], where the curve is known; not decreasing.
      values: float64 [N]; NaN is left out.
      width: columns of the plot, labels included.
      height: lines of the plot.

    Returns:
      `height` lines of `width` characters.
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if not len(values):
        lines = ["none yet".center(width)] + [" " * width] * height
        return lines[:height]
    low, high = values.min(), values.max()
    if len(values) > 20:
        high = max(np.percentile(values, _TOP_PERCENTILE), low)
    labels = [short(high), *[""] * (height - 2), short(low)][:height]
    margin = max(map(len, labels)) + 1
    columns = max(1, width - margin)
    dots = _dots(steps, np.minimum(values, high), low, high, 2 * columns, 4 * height)
    return [
        label.rjust(margin - 1) + " " + "".join(map(chr, line))
        for label, line in zip(labels, _patterns(dots))
    ]


def short(value: float) -> str:
    """A number in few characters: 4.022, 5.47k, 3e-04."""
    size = abs(value)
    for least, scale, prefix in _PREFIXES:
        if size >= least:
            return f"{float(f'{value / scale:.3g}'):g}{prefix}"
    if size and size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e")
    return f"{value:.4g}"


def _dots(
    steps: np.ndarray,
    values: np.ndarray,
    low: float,
    high: float,
    columns: int,
    rows: int,
) -> np.ndarray:
    """bool [rows, columns] of a curve; its first row is the highest."""
    span = max(1, steps[-1] - steps[0])
    places = np.round((steps - steps[0]) / span * (columns - 1)).astype(int)
    scale = (rows - 1) / (high - low) if high > low else 0.0
    heights = np.round((values - low) * scale).astype(int)
    if len({*places.tolist()}) == 1:
        places = np.full_like(places, columns - 1)
    known = np.unique(places)
    least, most = np.full(columns, rows), np.full(columns, -1)
    np.minimum.at(least, places, heights)
    np.maximum.at(most, places, heights)
    between = np.arange(known[0], known[-1] + 1)
    # Straight lines where no step falls into a column.
    bottom = np.round(np.interp(between, known, least[known])).astype(int)
    top = np.round(np.interp(between, known, most[known])).astype(int)
    # Each column reaches the one before it, so that the curve has no gaps.
    bottom[1:] = np.minimum(bottom[1:], top[:-1])
    top[1:] = np.maximum(top[1:], bottom[:-1])
    level = np.arange(rows)[::-1, None]
    dots = np.zeros((rows, columns), bool)
    dots[:, between] = (level >= bottom) & (level <= top)
    return dots


def _patterns(dots: np.ndarray) -> np.ndarray:
    """Code points int64 [rows / 4, columns / 2] of the patterns of dots."""
    rows, columns = dots.shape
    cells = dots.reshape(rows // 4, 4, columns // 2, 2).transpose(0, 2, 1, 3)
    return _BLANK + (cells * _DOTS).sum((2, 3))
