"""Relative positions of patches on a grid, for biases of attention scores (BEiT)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fmjax.models.layers.image_positions import Grid

# Displacements from the class token, to it, and of it to itself.
_OF_CLASS_TOKEN = 3


@dataclasses.dataclass(frozen=True)
class PatchGrid:
    """A sequence of tokens that are, after a prefix, the patches of a grid, row-major.

    Attributes:
      grid: rows and columns of patches.
      trained: rows and columns that learned positions are for.
      prefix: number of tokens before the patches.
    """

    grid: Grid
    trained: Grid
    prefix: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.prefix + math.prod(self.grid)


def num_displacements(grid: Grid) -> int:
    """Number of relative positions of patches, and of patches and a class token."""
    rows, columns = grid
    return (2 * rows - 1) * (2 * columns - 1) + _OF_CLASS_TOKEN


def displacements(grid: Grid) -> Int[Array, "1 T T"]:
    """Index of the relative position of each query and key (Bao et al. 2022).

    A query's place minus the key's, row-major from the most negative on; then three of
    the class token, which comes first: from it to any token, to it, and to itself.
    """
    rows, columns = grid
    at = jnp.indices(grid).reshape(2, -1)
    down, right = at[:, :, None] - at[:, None, :]
    patches = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    last = num_displacements(grid)
    index = jnp.pad(patches, [(1, 0), (1, 0)], constant_values=last - 2)
    return index.at[0].set(last - 3).at[0, 0].set(last - 1)[None]


def resize_displacements(
    table: Float[Array, "P H"], grid: Grid, new_grid: Grid
) -> Float[Array, "Q H"]:
    """Resizes a table of displacements for another grid, by bilinear interpolation.

    As transformers does it: PyTorch's with align_corners=False.
    """
    sizes = [(2 * old - 1, 2 * new - 1) for old, new in zip(grid, new_grid)]
    weights = np.kron(*(_bilinear(old, new) for old, new in sizes)).astype(np.float32)
    patches, rest = table[:-_OF_CLASS_TOKEN], table[-_OF_CLASS_TOKEN:]
    # The default precision of accelerators would round the numbers.
    patches = jnp.matmul(weights, patches, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([patches, rest])


def _bilinear(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Bilinear weights of `old` samples for `new` ones."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))
