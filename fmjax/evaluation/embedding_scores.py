"""Measures of vectors of texts: alignment, uniformity, retrieval."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

# Rows of products that are in memory at a time.
_ROWS = 1024
# The most texts whose distances are all computed for uniformity.
_MOST = 10_000
# Similarities that differ by less are ties, which count as right.
_MARGIN = 1e-6


def alignment(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "N D"]) -> float:
    """Alignment: the mean of |x - y|² over pairs (Wang & Isola 2020, section 4.1).

    Args:
      x: vectors of unit length.
      y: those of the texts that belong to them.
    """
    return float(((x.astype(np.float64) - y) ** 2).sum(1).mean())


def uniformity(x: Float[np.ndarray, "N D"]) -> float:
    """Uniformity: the log of the mean of exp(-2 |x - x'|²) (Wang & Isola 2020).

    The mean is over all pairs of different rows; of more than 10,000 rows, over some
    that are spread over all.

    Args:
      x: two or more vectors of unit length.
    """
    x = x[:: -(-len(x) // _MOST)]
    total = 0.0
    for rows, products in _products(x, x):
        kernel = np.exp(4 * products.astype(np.float64) - 4)
        kernel[np.arange(len(rows)), rows] = 0
        total += kernel.sum()
    return float(np.log(total / (len(x) * (len(x) - 1))))


def recall_at_1(
    x: Float[np.ndarray, "N D"],
    y: Float[np.ndarray, "N D"],
    texts: Int[np.ndarray, " N"],
) -> float:
    """Recall at rank 1: the share of x to which no other text is nearer than its own.

    Args:
      x: vectors of the inputs.
      y: vectors of the targets, among which the nearest is searched by inner product.
      texts: numbers of the targets' texts; equal texts are right for each other.
    """
    right: list[Bool[np.ndarray, " n"]] = []
    for rows, products in _products(x, y):
        own = products[np.arange(len(rows)), rows]
        products[texts[rows][:, None] == texts] = -np.inf
        right.append(own + _MARGIN >= products.max(1))
    return float(np.concatenate(right).mean())


def _products(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n M"]]]:
    for start in range(0, len(x), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(x)))
        yield rows, x[rows] @ y.T
