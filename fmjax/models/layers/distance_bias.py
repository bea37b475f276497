"""Position biases as functions of the distance from a query to a key."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.models.layers.position_bias import (
    RelativeBuckets,
    alibi_slopes,
    relative_bucket,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DistanceBias:
    """A bias of the scores that depends on key position - query position alone.

    Kernels that compute it block by block need no array [T, S]; `dense` is that array.
    It is ALiBi's, -slope · |distance|, or a number for each head and bucket of
    distance, as T5's.

    Attributes:
      queries: int32 [B or 1, T], positions.
      keys: int32 [B or 1, S], positions.
      slopes: float32 [H], of ALiBi; else None.
      table: float32 [buckets, H], of T5; else None.
      buckets: how distances have buckets; None with `slopes`. Static.
      causal: see `relative_bucket`. Static.
    """

    queries: Int[Array, "#B T"]
    keys: Int[Array, "#B S"]
    slopes: Float[Array, " H"] | None = None
    table: Float[Array, "buckets H"] | None = None
    buckets: RelativeBuckets | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def alibi(
        cls,
        num_heads: int,
        queries: Int[Array, "#B T"],
        keys: Int[Array, "#B S"],
        factor: float = 1.0,
    ) -> "DistanceBias":
        """ALiBi's, with slopes multiplied by a factor."""
        return cls(queries, keys, factor * jnp.asarray(alibi_slopes(num_heads)))

    def dense(self) -> Float[Array, "#B H T S"]:
        """The bias of each head, query and key."""
        distance = self.keys[:, None, :] - self.queries[:, :, None]
        if self.slopes is not None:
            size = jnp.abs(distance)[:, None].astype(jnp.float32)
            return -self.slopes[:, None, None] * size
        index = bucket_of(self.buckets, distance, self.causal)
        return jnp.moveaxis(self.table[index], -1, 1)


def bucket_of(
    buckets: RelativeBuckets, distance: Int[Array, "..."], causal: bool
) -> Int[Array, "..."]:
    """The bucket of each distance; see `relative_bucket`."""
    return relative_bucket(distance, buckets.number, buckets.max_distance, causal)
