"""Prefix language modelling (T5, Raffel et al. 2020, section 3.2.3)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.text.packing import Row
from fmjax.data.tokenizers.specials import end_id, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError


@configurable("prefix_lm")
@dataclasses.dataclass(frozen=True)
class PrefixLM:
    """A text is cut in two: the encoder's inputs and the decoder's targets.

    Attributes:
      least: the smallest share of the tokens that is read.
      most: the largest; the share is uniform between the two.
      mode: a special token put in front of what is read, such as UL2's "[S]" or
        AlexaTM's "[CLM]"; none if empty.
    """

    least: float = 0.0
    most: float = 1.0
    mode: str = ""

    def __post_init__(self):
        if not 0 <= self.least <= self.most <= 1:
            raise UserError(
                f"prefix_lm.least = {self.least}, prefix_lm.most = {self.most}: "
                "expected 0 ≤ least ≤ most ≤ 1."
            )

    def raw_length(self, length: int) -> int:
        """`length` less the mode; EOS takes a target's place; see `Corruption`."""
        raw = length - bool(self.mode)
        if raw < 2:
            raise UserError(
                f"data.length = {length} is too small for @prefix_lm(); expected at "
                f"least {2 + bool(self.mode)}."
            )
        return raw

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "_PrefixLM":
        """For a vocabulary and encoder rows of `length`; see `Corruption`."""
        return _PrefixLM(self, tokenizer, length, raw_length)


class _PrefixLM:
    def __init__(self, settings: PrefixLM, tokenizer, length: int, raw: int):
        name = "@prefix_lm()"
        self.settings, self.length, self.raw_length = settings, length, raw
        # At least one token is read; EOS takes its place.
        self.target_length = raw
        self.mode = np.zeros(0, np.int32)
        if settings.mode:
            self.mode = np.array([special_id(tokenizer, settings.mode, name)], np.int32)
        self.eos = np.array([end_id(tokenizer, name)], np.int32)

    def row(self, tokens: np.ndarray, rng: Rng, other=None) -> Row:
        """See `Corrupt.row`; a single token is too few and gives zeros."""
        del other
        pairs = [] if len(tokens) < 2 else [self.corrupted(tokens, rng)]
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def corrupted(self, tokens: np.ndarray, rng: Rng):
        """The encoder's inputs, and the targets."""
        share = rng.uniform(self.settings.least, self.settings.most)
        cut = min(max(round(share * len(tokens)), 1), len(tokens) - 1)
        read = np.concatenate([self.mode, tokens[:cut], self.eos])
        return read, np.concatenate([tokens[cut:], self.eos])
