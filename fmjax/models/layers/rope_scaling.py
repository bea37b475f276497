"""RoPE scaling: rotary frequencies for sequences longer than those of pretraining.

The scalings are those of `rope_scaling` in Hugging Face's config.json, and equal
`transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS`.
"""

import dataclasses
import math
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError, require

# Frequencies of r = R/2 pairs: [r], or [B, 1, 1, r] if they depend on the row.
Frequencies = Float[Array, "... r"]
# The largest position of each row plus one, [B, 1, 1, 1].
Length = Int[Array, "B 1 1 1"]


class Scaling(Protocol):
    """Protocol of a scaling of rotary frequencies.

    Attributes:
      attention_scale: multiplies sines and cosines, and thus attention scores by its
        square.
    """

    attention_scale: float

    def check(self, dim: int) -> None:
        """Raises UserError if the scaling does not fit `dim` rotary features."""

    def scale(
        self, frequencies: Frequencies, theta: float, dim: int, length: Length
    ) -> Frequencies:
        """Scales frequencies.

        Args:
          frequencies: without scaling, for the base `theta`.
          theta: base of the frequencies.
          dim: R, number of rotary features.
          length: the largest position of each row plus one.
        """


class _Plain:
    """Base class of scalings with attention_scale 1 that fit every width."""

    attention_scale = 1.0

    def check(self, dim: int) -> None:
        """Every width fits."""
        del dim


@configurable("rope_linear")
@dataclasses.dataclass(frozen=True)
class LinearScaling(_Plain):
    """Position interpolation (Chen et al. 2023): positions divided by a factor.

    Attributes:
      factor: ratio of the longest sequence to that of pretraining.
    """

    factor: float

    def __post_init__(self):
        _check_factor(self)

    def scale(
        self, frequencies: Frequencies, theta: float, dim: int, length: Length
    ) -> Frequencies:
        """See `Scaling`."""
        del theta, dim, length
        return frequencies / self.factor


@configurable("rope_dynamic")
@dataclasses.dataclass(frozen=True)
class DynamicScaling(_Plain):
    """Dynamic NTK-aware scaling: the base grows with the sequence (Peng et al. 2023).

    The length of a sequence is the largest position of its row in this call plus one.
    Keys in a key-value cache keep the rotation they were written with, as in
    transformers. There the length is that of the longest row of the batch; here each
    row has its own.

    Attributes:
      factor: ratio of the longest sequence to that of pretraining.
      original_length: tokens of the longest sequence in pretraining; sequences up to
        this length are not scaled.
    """

    factor: float
    original_length: int

    def __post_init__(self):
        _check_factor(self)
        _check_length(self)

    def check(self, dim: int) -> None:
        """Raises UserError for two features, whose only frequency is 1."""
        if dim <= 2:
            raise UserError(
                f"rope_dynamic: {dim} rotary features; expected at least 4."
            )

    def scale(
        self, frequencies: Frequencies, theta: float, dim: int, length: Length
    ) -> Frequencies:
        """See `Scaling`."""
        half = frequencies.shape[-1]
        longest = jnp.maximum(length, self.original_length).astype(jnp.float32)
        growth = self.factor * longest / self.original_length - (self.factor - 1)
        base = theta * growth ** (dim / (dim - 2))
        return base ** (-jnp.arange(half, dtype=jnp.float32) / half)


@configurable("rope_llama3")
@dataclasses.dataclass(frozen=True)
class Llama3Scaling(_Plain):
    """Llama 3.1's scaling: low frequencies are divided, high ones kept, a ramp between.

    Attributes:
      factor: divisor of low frequencies.
      low_freq_factor: wavelengths above original_length / low_freq_factor are low
        frequencies.
      high_freq_factor: wavelengths below original_length / high_freq_factor are high.
      original_length: tokens of the longest sequence in pretraining.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        _check_factor(self)
        _check_length(self)
        most = self.high_freq_factor
        require(
            self,
            "low_freq_factor",
            0 < self.low_freq_factor < most,
            f"0 < x < rope_llama3.high_freq_factor = {most}",
        )

    def scale(
        self, frequencies: Frequencies, theta: float, dim: int, length: Length
    ) -> Frequencies:
        """See `Scaling`."""
        del theta, dim, length
        low, high = self.low_freq_factor, self.high_freq_factor
        wavelength = 2 * math.pi / frequencies
        divided = frequencies / self.factor
        ramp = (self.original_length / wavelength - low) / (high - low)
        between = (1 - ramp) * divided + ramp * frequencies
        found = jnp.where(wavelength > self.original_length / low, divided, frequencies)
        medium = (wavelength >= self.original_length / high) & (
            wavelength <= self.original_length / low
        )
        return jnp.where(medium, between, found)


@configurable("rope_yarn")
@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): interpolates low frequencies and scales the scores.

    Attributes:
      factor: ratio of the longest sequence to that of pretraining.
      original_length: tokens of the longest sequence in pretraining, L.
      beta_fast: frequencies of more rotations than this in L tokens are kept.
      beta_slow: frequencies of fewer rotations than this in L tokens are divided by the
        factor, with a linear ramp between the two.
      attention_factor: multiplies sines and cosines; None means 0.1 ln(factor) + 1
        (equation 22).
      truncate: whether the ends of the ramp are rounded to whole features.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        _check_factor(self)
        _check_length(self)
        most = self.beta_fast
        bounds = f"0 < x ≤ rope_yarn.beta_fast = {most}"
        require(self, "beta_slow", 0 < self.beta_slow <= most, bounds)

    @property
    def attention_scale(self) -> float:
        """See `Scaling`."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0

    def check(self, dim: int) -> None:
        """Every width fits."""
        del dim

    def scale(
        self, frequencies: Frequencies, theta: float, dim: int, length: Length
    ) -> Frequencies:
        """See `Scaling`."""
        del length
        half = dim // 2

        def feature(turns: float) -> float:
            """Index of the pair with `turns` rotations in original_length tokens."""
            wavelengths = self.original_length / (turns * 2 * math.pi)
            return dim * math.log(wavelengths) / (2 * math.log(theta))

        low, high = feature(self.beta_fast), feature(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low if high != low else 0.001
        ramp = np.clip((np.arange(half, dtype=np.float32) - low) / width, 0, 1)
        return frequencies / self.factor * ramp + frequencies * (1 - ramp)


@configurable("rope_long")
@dataclasses.dataclass(frozen=True)
class LongScaling:
    """LongRoPE (Ding et al. 2024; Phi-3): a searched divisor for each frequency.

    The length of a sequence, defined as for `DynamicScaling`, selects one of two lists
    of divisors.

    Attributes:
      short_factors: R/2 divisors for sequences of at most original_length tokens.
      long_factors: R/2 divisors for longer sequences.
      original_length: tokens of the longest sequence in pretraining.
      factor: ratio of the longest sequence to that of pretraining, which the default of
        attention_factor uses.
      attention_factor: multiplies sines and cosines; None means
        sqrt(1 + ln(factor) / ln(original_length)).
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    factor: float
    attention_factor: float | None = None

    def __post_init__(self):
        _check_factor(self)
        _check_length(self)

    @property
    def attention_scale(self) -> float:
        """See `Scaling`."""
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))

    def check(self, dim: int) -> None:
        """Raises UserError for a list whose length is not R/2."""
        for name in ("short_factors", "long_factors"):
            found = len(getattr(self, name))
            if found != dim // 2:
                raise UserError(
                    f"rope_long.{name}: {found} numbers; expected {dim // 2}, one for "
                    "each pair of rotary features."
                )

    def scale(
        self, frequencies: Frequencies, theta: float, dim: int, length: Length
    ) -> Frequencies:
        """See `Scaling`."""
        del theta, dim
        short, long = (
            jnp.asarray(factors, jnp.float32)
            for factors in (self.short_factors, self.long_factors)
        )
        factors = jnp.where(length > self.original_length, long, short)
        return frequencies / factors


def _check_factor(scaling) -> None:
    require(scaling, "factor", scaling.factor >= 1, "at least 1")


def _check_length(scaling) -> None:
    require(scaling, "original_length", scaling.original_length >= 2, "at least 2")
