"""Rotary positions of patches in two dimensions (DINOv3, Siméoni et al. 2025)."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.patch_grid import PatchGrid


@configurable("patch_rotary")
@dataclasses.dataclass(frozen=True)
class PatchRotary:
    """Axial rotary position embeddings of patches; other tokens are not rotated.

    Rows and columns are places from -1 to 1, whatever the number of patches: half of
    the pairs of a head turn with the row, half with the column, pair i of K/4 by
    2π · place · theta^(-4i/K).

    Attributes:
      theta: base of the frequencies.
    """

    theta: float = 100.0

    def __post_init__(self):
        require(self, "theta", self.theta > 1, "more than 1")

    def check(self, head_dim: int) -> None:
        """Raises UserError if it does not fit heads of this width."""
        if head_dim % 4:
            raise UserError(
                f"transformer.head_dim = {head_dim} with @patch_rotary(): expected a "
                "multiple of 4, as pairs turn in two dimensions."
            )

    def tables(
        self, head_dim: int, patches: PatchGrid
    ) -> tuple[Float[Array, "1 T 1 r"], Float[Array, "1 T 1 r"]]:
        """Sines and cosines of all tokens, for `rotate`, with r = K/2; in float64."""
        frequency = self.theta ** (-4 * np.arange(head_dim // 4) / head_dim)
        places = [2 * (np.arange(n) + 0.5) / n - 1 for n in patches.grid]
        at = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 2)
        angle = 2 * math.pi * (at[:, :, None] * frequency).reshape(len(at), -1)
        angle = np.pad(angle, [(patches.prefix, 0), (0, 0)])[None, :, None]
        sin, cos = (f(angle).astype(np.float32) for f in (np.sin, np.cos))
        return jnp.asarray(sin), jnp.asarray(cos)
