"""Grouped matrix product: sorted rows, each multiplied with the matrix of its group."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def grouped_dot(
    rows: Float[Array, "N D"],
    kernels: Float[Array, "E D F"],
    sizes: Int[Array, " E"],
) -> Float[Array, "N F"]:
    """Grouped product: the first `sizes[0]` rows times the first kernel, and so on.

    The result is undefined for rows after the last group. On CPUs the product is
    computed in tiles, since XLA's `ragged_dot` multiplies all rows with all kernels
    there.
    """
    return jax.lax.platform_dependent(
        rows, kernels, sizes, cpu=_in_tiles, default=jax.lax.ragged_dot
    )


def _in_tiles(rows, kernels, sizes):
    """The grouped product with groups padded to tiles, one kernel copy per tile."""
    N, E = len(rows), len(kernels)
    # A compromise: large tiles waste half a tile per group on padding, small ones copy
    # kernels more often.
    tile = max(16, min(128, N // E // 2))
    row_ends, tiles = jnp.cumsum(sizes), -(-sizes // tile)
    tile_ends = jnp.cumsum(tiles)
    first_row, first_tile = row_ends - sizes, tile_ends - tiles

    which = jnp.arange(N // tile + E)
    group = jnp.minimum(jnp.searchsorted(tile_ends, which, side="right"), E - 1)
    start = first_row[group] + (which - first_tile[group]) * tile
    place = start[:, None] + jnp.arange(tile)
    real = place < row_ends[group][:, None]
    x = jnp.where(real[..., None], rows[jnp.where(real, place, 0)], 0)
    y = jnp.einsum("tsd,tdf->tsf", x, kernels[group]).reshape(-1, kernels.shape[-1])

    which = jnp.arange(N)
    group = jnp.minimum(jnp.searchsorted(row_ends, which, side="right"), E - 1)
    place = first_tile[group] * tile + which - first_row[group]
    return y[jnp.where(which < row_ends[-1], place, 0)]
