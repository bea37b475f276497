"""Learned biases of attention scores by relative position (T5, BEiT)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.image_positions import Grid
from fmjax.models.layers.logical_axes import normal_init
from fmjax.models.layers.patch_grid import (
    PatchGrid,
    displacements,
    num_displacements,
    resize_displacements,
)
from fmjax.models.layers.position_bias import RelativeBuckets, relative_bucket


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """The relative position of each query and key, as a row of a table of biases.

    Attributes:
      index: int [B or 1, T, S], row of the table.
      rows: number of rows. Static.
      resize: grids of patches that the table and the index are for, where they differ;
        see `resize_displacements`. Static.
    """

    index: Int[Array, "#B T S"]
    rows: int = dataclasses.field(metadata={"static": True})
    resize: tuple[Grid, Grid] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )


def bucketed(
    buckets: RelativeBuckets,
    queries: Int[Array, "#B T"],
    keys: Int[Array, "#B S"],
    causal: bool,
) -> RelativePositions:
    """The buckets of queries and keys at these positions; see `relative_bucket`."""
    offset = keys[:, None, :] - queries[:, :, None]
    index = relative_bucket(offset, buckets.number, buckets.max_distance, causal)
    return RelativePositions(index, buckets.number)


def on_grid(patches: PatchGrid) -> RelativePositions:
    """The displacements of a class token and patches; see `displacements`."""
    resize = (patches.trained, patches.grid)
    return RelativePositions(
        displacements(patches.grid),
        num_displacements(patches.trained),
        None if patches.grid == patches.trained else resize,
    )


class RelativeBias(nn.Module):
    """Relative position bias: a learned number per head and relative position.

    Attributes:
      num_heads: H.
      init_std: standard deviation of the table.
    """

    num_heads: int
    init_std: float

    @nn.compact
    def __call__(
        self, relative: RelativePositions | DistanceBias
    ) -> Float[Array, "#B H T S"] | DistanceBias:
        """The bias of each query and key; by distance if so given, without a table."""
        by_distance = isinstance(relative, DistanceBias)
        rows = relative.buckets.number if by_distance else relative.rows
        init = normal_init(self.init_std, "bucket", "heads")
        table = self.param("table", init, (rows, self.num_heads))
        if by_distance:
            return dataclasses.replace(relative, table=table)
        if relative.resize is not None:
            table = resize_displacements(table, *relative.resize)
        return jnp.moveaxis(table[relative.index], -1, 1)
