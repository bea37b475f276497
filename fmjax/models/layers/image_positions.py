"""Positions on a grid of patches: fixed sines, and learned ones at another size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax.errors import UserError

Grid = tuple[int, int]


class PatchAxis(str):
    """The logical axis of a learned table of patches' positions, which tells its grid.

    Rules and optimizers see "position", as in tables of texts. What the rows stand for
    no shape could tell: 2 × 8 patches have as many as 4 × 4.

    Attributes:
      grid: rows and columns of patches.
      prefix: rows of other tokens, before those of the patches.
    """

    grid: Grid
    prefix: int

    def __new__(cls, grid: Grid, prefix: int):
        """Takes the attributes."""
        axis = super().__new__(cls, "position")
        axis.grid, axis.prefix = grid, prefix
        return axis

    @property
    def rows(self) -> int:
        """Of the whole table."""
        return self.prefix + math.prod(self.grid)


def sincos_2d(grid: Grid, width: int) -> Float[np.ndarray, "N D"]:
    """Fixed vectors of a grid's places, row by row (MoCo v3, Chen et al. 2021).

    A quarter of the width each is sin and cos of the column, sin and cos of the row,
    with the frequencies 10000^(-4i/D); computed in float64.

    Args:
      grid: rows and columns of patches.
      width: D, a multiple of 4.
    """
    if width % 4:
        raise UserError(
            f"transformer.embed_dim = {width}: expected a multiple of 4 for sin-cos "
            "positions in two dimensions."
        )
    frequency = 10000.0 ** (-4 * np.arange(width // 4) / width)
    rows, columns = np.indices(grid).reshape(2, -1)
    parts = []
    for place in (columns, rows):
        angle = place[:, None] * frequency
        parts += [np.sin(angle), np.cos(angle)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def resize_positions(
    table: Float[Array | np.ndarray, "N D"],
    grid: Grid,
    new_grid: Grid,
    prefix: int = 0,
) -> Float[Array | np.ndarray, "M D"]:
    """A learned table for images of another size, by bicubic interpolation.

    As PyTorch interpolates with corners not aligned, which all who publish vision
    transformers do.

    Args:
      table: NumPy's or JAX's, row by row; `prefix` rows of other tokens come first and
        stay as they are.
      grid: rows and columns of the table's patches.
      new_grid: those of the table to make.
      prefix: rows before the patches'.
    """
    if tuple(grid) == tuple(new_grid):
        return table
    first, patches = table[:prefix], table[prefix:]
    weights = np.kron(*(_bicubic(old, new) for old, new in zip(grid, new_grid)))
    weights = weights.astype(np.float32)
    if isinstance(table, np.ndarray):
        return np.concatenate([first, weights @ patches])
    # Accelerators' default would round a table that training starts from.
    resized = jnp.matmul(weights, patches, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([first, resized])


def _bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Weights of `old` samples in `new` ones (Keys 1981, with a = -0.75)."""
    a = -0.75
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        source = np.floor(at) + step
        t = np.abs(at - source)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        # Beyond the edge the outermost sample stands.
        index = np.clip(source, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), index), np.where(t <= 1, near, far))
    return weights
