"""Embedding tables."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.models.layers.adapters import adapter_of, lookup
from fmjax.models.layers.logical_axes import constrain, normal_init
from fmjax.models.layers.virtual_tokens import PROMPT, prompt_vectors


class Embedding(nn.Module):
    """Embedding: a table of vectors, looked up by id.

    Attributes:
      num_rows: number of ids.
      dim: width of a vector.
      axis: logical name of the table's rows.
      init_std: standard deviation of the table.
      dtype: of the vectors returned; the table is float32.
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
        # The width is gathered first, as FSDP gathers every weight before use; from a
        # sharded width XLA would repeat the lookup on every device.
        table = constrain(self.table.astype(self.dtype), self.axis, None)
        return lookup(self, "table", ids, jnp.take(table, ids, axis=0))

    def prompt(self) -> Float[Array, "n D"] | None:
        """The vectors of virtual tokens before every text; None for none."""
        found = adapter_of(self, f"table{PROMPT}")
        return None if found is None else prompt_vectors(found).astype(self.dtype)
