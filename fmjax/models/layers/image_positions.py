"""Positions on a grid of patches: fixed sin-cos, and resizing of learned ones."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax.errors import UserError

Grid = tuple[int, int]
# How a learned table is interpolated; see `resize_positions`.
Interpolation = Literal["bicubic", "bicubic_antialiased", "bilinear_antialiased"]


class PatchAxis(str):
    """The logical axis of a learned table of patch positions, with its grid.

    Sharding rules and optimizers see the name "position", as in tables of text models.
    The grid is kept because the shape of the table does not determine it: grids of
    2 × 8 and 4 × 4 have the same number of rows.

    Attributes:
      grid: rows and columns of patches.
      prefix: rows of other tokens, before those of the patches.
      interpolation: how the table is resized.
    """

    grid: Grid
    prefix: int
    interpolation: Interpolation

    def __new__(cls, grid: Grid, prefix: int, interpolation: Interpolation = "bicubic"):
        """Makes the name "position" with these attributes."""
        axis = super().__new__(cls, "position")
        axis.grid, axis.prefix, axis.interpolation = grid, prefix, interpolation
        return axis

    @property
    def rows(self) -> int:
        """Rows of the whole table."""
        return self.prefix + math.prod(self.grid)


def sincos_2d(grid: Grid, width: int) -> Float[np.ndarray, "N D"]:
    """Fixed 2-D sin-cos positions, in row-major order (MoCo v3, Chen et al. 2021).

    The four quarters of the width are sin and cos of the column, sin and cos of the
    row, with the frequencies 10000^(-4i/D). Computed in float64.

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
    interpolation: Interpolation = "bicubic",
) -> Float[Array | np.ndarray, "M D"]:
    """Resizes a learned table for images of another size.

    The interpolation is PyTorch's with align_corners=False, as in published vision
    transformers.

    Args:
      table: a NumPy or JAX array, in row-major order; the first `prefix` rows are of
        other tokens and are copied.
      grid: rows and columns of patches of the table.
      new_grid: rows and columns of patches of the new table.
      prefix: number of rows before those of the patches.
      interpolation: "bicubic" (most models); "bicubic_antialiased" (DINOv2 with
        registers) and "bilinear_antialiased" (SigLIP 2), where the weights of a smaller
        table reach over as many samples as there are for a new one, as by PyTorch's
        option `antialias`.
    """
    if tuple(grid) == tuple(new_grid):
        return table
    first, patches = table[:prefix], table[prefix:]
    one_axis = _ONE_AXIS[interpolation]
    weights = np.kron(*(one_axis(old, new) for old, new in zip(grid, new_grid)))
    weights = weights.astype(np.float32)
    if isinstance(table, np.ndarray):
        return np.concatenate([first, weights @ patches])
    # The default precision of accelerators would round the initial values of training.
    resized = jnp.matmul(weights, patches, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([first, resized])


def _bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Bicubic weights of `old` samples for `new` ones (Keys 1981, with a = -0.75)."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        source = np.floor(at) + step
        # Beyond the edge the outermost sample is repeated.
        index = np.clip(source, 0, old - 1).astype(int)
        near = _cubic(np.abs(at - source), -0.75)
        np.add.at(weights, (np.arange(new), index), near)
    return weights


def _antialiased(
    kernel: Callable[[np.ndarray], np.ndarray], old: int, new: int
) -> Float[np.ndarray, "new old"]:
    """A kernel's weights, wider by old / new where there are fewer new samples."""
    wider = max(old / new, 1.0)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = kernel(np.abs(at[:, None] - np.arange(old)) / wider)
    return weights / weights.sum(1, keepdims=True)


def _cubic(t: Float[np.ndarray, "..."], a: float) -> Float[np.ndarray, "..."]:
    """Keys' kernel at distance t (Keys 1981)."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _triangle(t: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.maximum(0, 1 - t)


# PyTorch's bicubic kernel has another coefficient with antialiasing.
_ONE_AXIS: dict[str, Callable[[int, int], np.ndarray]] = {
    "bicubic": _bicubic,
    "bicubic_antialiased": functools.partial(
        _antialiased, functools.partial(_cubic, a=-0.5)
    ),
    "bilinear_antialiased": functools.partial(_antialiased, _triangle),
}
