"""Mixtures of corruptions, one drawn for each row (UL2's denoisers, AlexaTM)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.records import Row
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.text.corruption.denoising import Denoising
from fmjax.data.text.corruption.infilling import Infilling
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require


@configurable("corruption_mixture")
@dataclasses.dataclass(frozen=True)
class CorruptionMixture:
    """A mixture of corruptions, one drawn for each row.

    Used by UL2 (Tay et al. 2023) and AlexaTM (Soltan et al. 2022). All corruptions get
    text of the same length, the longest that fits each of them, and rows have the
    largest shape of them.

    Attributes:
      corruptions: the corruptions.
      rates: share of the rows of each corruption, relative to the others.
    """

    corruptions: tuple[SpanCorruption | PrefixLM | Infilling | Denoising, ...]
    rates: tuple[float | int, ...]

    def __post_init__(self):
        if len(self.corruptions) != len(self.rates) or not self.corruptions:
            raise UserError(
                f"corruption_mixture.rates has {len(self.rates)} numbers for "
                f"{len(self.corruptions)} corruptions; expected one number for each."
            )
        require(self, "rates", min(self.rates) > 0, "positive numbers")

    def raw_length(self, length: int) -> int:
        """The minimum of all corruptions; see `Corruption`."""
        return min(c.raw_length(length) for c in self.corruptions)

    def bind(
        self, tokenizer: Tokenizer, length: int, raw_length: int
    ) -> "_CorruptionMixture":
        """The corruption for a tokenizer and row length; see `Corruption.bind`."""
        members = [c.bind(tokenizer, length, raw_length) for c in self.corruptions]
        return _CorruptionMixture(members, self.rates, length, raw_length)


class _CorruptionMixture:
    def __init__(self, members: list, rates, length: int, raw: int):
        self.members, self.length, self.raw_length = members, length, raw
        self.shares = np.cumsum(rates) / np.sum(rates)
        self.target_length = max(member.target_length for member in members)

    def row(self, tokens: np.ndarray, rng: Rng, other=None) -> Row:
        """See `Corrupt.row`; fewer than two tokens give zeros of weight 0."""
        del other
        drawn = int(np.searchsorted(self.shares, rng.random(), side="right"))
        pairs = []
        if len(tokens) > 1:
            pairs.append(self.members[drawn].corrupted(tokens, rng))
        return encoder_decoder_row(pairs, self.length, self.target_length)
