"""Grouped matrix product: sorted rows, each multiplied with the matrix of its group."""

import contextlib

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import gmm
from jaxtyping import Array, Float, Int

from fmjax.models.layers.lanes import whole_lanes
from fmjax.sharding.platform import platform

# Of rows, width and hidden units: the matrix unit is busy, and three blocks of each,
# two of which are copied while one is used, fit 16 MiB of vector memory.
_BLOCKS = (512, 1024, 1024)
EXPECTED_ROWS = "expected_rows_"


def grouped_dot(
    rows: Float[Array, "N D"],
    kernels: Float[Array, "E D F"],
    sizes: Int[Array, " E"],
) -> Float[Array, "N F"]:
    """Grouped product: the first `sizes[0]` rows times the first kernel, and so on.

    The result is undefined for rows after the last group, as is the gradient of these
    rows. On TPUs they cost nothing: MegaBlocks' kernel in Pallas, which JAX comes with,
    goes through the blocks of the groups alone, while XLA's `ragged_dot` has the time
    of all N. On CPUs the product is computed in tiles, since `ragged_dot` multiplies
    all rows with all kernels there.
    """
    if platform() == "tpu":
        return _by_megablox(rows, kernels, sizes)
    return jax.lax.platform_dependent(
        rows, kernels, sizes, cpu=_in_tiles, default=jax.lax.ragged_dot
    )


def expected_rows(count: int) -> contextlib.AbstractContextManager:
    """Context manager: notes in the program how many rows grouped products will have.

    Only the data decides how many of N there are. `fmjax plan` reads the note, and
    nothing else does.
    """
    return jax.named_scope(f"{EXPECTED_ROWS}{count}")


def _by_megablox(rows, kernels, sizes, interpret: bool = False):
    (N, D), F = rows.shape, kernels.shape[-1]
    blocks = tuple(min(b, whole_lanes(n)) for b, n in zip(_BLOCKS, (N, D, F)))
    rows = jnp.pad(rows, ((0, -N % blocks[0]), (0, 0)))
    found = gmm(rows, kernels, sizes, rows.dtype, blocks, interpret=interpret)
    return found[:N]


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
