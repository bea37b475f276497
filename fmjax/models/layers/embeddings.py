"""Tables of vectors that are looked up by id."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.models.layers.logical_axes import constrain, normal_init


class Embedding(nn.Module):
    """A table of vectors, looked up by id.

    Attributes:
      num_rows: ids that may be looked up.
      dim: width of a vector.
      axis: logical name of the table's rows.
      init_std: standard deviation of the table.
      dtype: of the vectors given.
    """

    num_rows: int
    dim: int
    axis: str
    init_std: float
    dtype: jnp.dtype

    def setup(self):
        """Declares the table."""
        init = normal_init(self.init_std, self.axis, "embed")
        self.table = self.param("table", init, (self.num_rows, self.dim))

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Vectors of `ids`."""
        # Gathered whole in width first, as FSDP gathers every weight that is used; from
        # shards of it XLA would repeat the lookup on every device.
        table = constrain(self.table.astype(self.dtype), self.axis, None)
        return jnp.take(table, ids, axis=0)
