"""Rotary position embeddings (RoPE, Su et al. 2021)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    YarnScaling,
)

AnyScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling


@configurable("rotary")
@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings (RoPE) of queries and keys.

    Attributes:
      theta: base of the frequencies: pair i of R/2 pairs is rotated by position ·
        theta^(-2i/R).
      fraction: the number R of rotated features, as a share of a head's width; the
        others are unchanged (partial rotary factor; GPT-NeoX, Phi).
      scaling: scaling of the frequencies for sequences longer than those of
        pretraining; None for no scaling.
      local_theta: base in layers with a sliding window (Gemma 3: 1e4 there and 1e6 in
        global layers); None uses `theta` and `scaling` in all layers.
      local_scaling: scaling in layers with a sliding window, with local_theta alone;
        None for no scaling there.
      interleaved: whether feature 2i is paired with feature 2i + 1, as in the paper and
        in GPT-J, and not with feature i + R/2, as in Llama.
      skip_every: every n-th layer has no rotary positions (Yang et al. 2025, "RoPE to
        NoPE and back again"; SmolLM3); None for no such layers.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    scaling: AnyScaling | None = None
    local_theta: float | None = None
    local_scaling: AnyScaling | None = None
    interleaved: bool = False
    skip_every: int | None = None

    def __post_init__(self):
        for name in ("theta", "local_theta"):
            value = getattr(self, name)
            require(self, name, value is None or value > 1, "more than 1")
        alone = self.local_theta is not None or self.local_scaling is None
        require(self, "local_scaling", alone, "None with rotary.local_theta = None")
        require(self, "fraction", 0 < self.fraction <= 1, "0 < x ≤ 1")
        skip = self.skip_every
        require(self, "skip_every", skip is None or skip >= 2, "at least 2, or None")

    def dim(self, head_dim: int) -> int:
        """R, the number of rotated features of a head."""
        return int(head_dim * self.fraction)

    def check(self, head_dim: int) -> None:
        """Raises UserError if it does not fit heads of this width."""
        dim = self.dim(head_dim)
        if dim < 2 or dim % 2:
            raise UserError(
                f"transformer.head_dim = {head_dim} with rotary.fraction = "
                f"{self.fraction} gives {dim} rotary features; expected an even number "
                "of at least 2, as they turn in pairs."
            )
        for scaling in (self.scaling, self.local_scaling):
            if scaling is not None:
                scaling.check(dim)

    def frequencies(
        self,
        head_dim: int,
        positions: Int[Array, "B T"],
        local: bool | Bool[Array, ""] = False,
    ) -> tuple[Float[Array, "*rows r"], float | Float[Array, ""]]:
        """Inverse frequencies, float32, and the factor of sines and cosines.

        Args:
          head_dim: width of a head.
          positions: of the sequence; some scalings depend on the largest of each row.
          local: whether the layer has a sliding window.

        Returns:
          Frequencies of the r = R/2 pairs, [r], or [B, 1, 1, r] if they depend on the
          row; and the factor that multiplies sines and cosines.
        """
        dim = self.dim(head_dim)
        found, factor = _scaled(self.theta, self.scaling, dim, positions)
        if self.local_theta is None:
            return found, factor
        own, own_factor = _scaled(self.local_theta, self.local_scaling, dim, positions)
        return jnp.where(local, own, found), jnp.where(local, own_factor, factor)

    def tables(
        self,
        head_dim: int,
        positions: Int[Array, "B T"],
        local: bool | Bool[Array, ""] = False,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T 1 r"], Float[Array, "B T 1 r"]]:
        """Sines and cosines of positions, for `rotate`; see `frequencies`.

        Args:
          head_dim: as of `frequencies`, likewise the next two.
          positions: of the sequence.
          local: whether the layer has a sliding window.
          layer: its index from 0; read with skip_every alone.
        """
        frequencies, factor = self.frequencies(head_dim, positions, local)
        angle = positions[..., None, None].astype(jnp.float32) * frequencies
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        if not (isinstance(factor, float) and factor == 1.0):
            sin, cos = sin * factor, cos * factor
        if self.skip_every is None:
            return sin, cos
        turns = (layer + 1) % self.skip_every != 0
        return jnp.where(turns, sin, 0.0), jnp.where(turns, cos, 1.0)


def rotate(
    x: Float[Array, "B T H K"],
    sin: Float[Array, "#B T 1 r"],
    cos: Float[Array, "#B T 1 r"],
    interleaved: bool = False,
) -> Float[Array, "B T H K"]:
    """Rotates the first R features of x by the angles of a sine and cosine table.

    Feature i is paired with feature i + R/2, as in Llama, or, interleaved, feature 2i
    with 2i + 1. Computed in float32, returned in the dtype of x.
    """
    dim = 2 * sin.shape[-1]
    turning = x[..., :dim].astype(jnp.float32)
    if interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        turned = turned.reshape(turning.shape)
    else:
        a, b = jnp.split(turning, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    turned = turned.astype(x.dtype)
    if dim == x.shape[-1]:
        return turned
    return jnp.concatenate([turned, x[..., dim:]], axis=-1)


def _scaled(
    theta: float, scaling: AnyScaling | None, dim: int, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "*rows r"], float]:
    """Frequencies and the factor of sines and cosines; see `Rotary.frequencies`."""
    half = dim // 2
    plain = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return plain, 1.0
    # Per row, so that a row does not depend on the others in its batch.
    length = positions.max(-1)[:, None, None, None] + 1
    return scaling.scale(plain, theta, dim, length), scaling.attention_scale
