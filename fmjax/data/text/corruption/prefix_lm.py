"""Prefix language modelling (T5, Raffel et al. 2020, section 3.2.3)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.records import Row
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.tokenizers.specials import end_id, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError


@configurable("prefix_lm")
@dataclasses.dataclass(frozen=True)
class PrefixLM:
    """Prefix LM: the encoder reads the start of a text, the decoder predicts the rest.

    The fraction of the tokens that is read is uniform from `min_fraction` to
    `max_fraction`.

    Attributes:
      min_fraction: minimum fraction of the tokens that is read.
      max_fraction: maximum fraction of the tokens that is read.
      mode: special token before the inputs, such as UL2's "[S]" or AlexaTM's "[CLM]";
        "" for none.
    """

    min_fraction: float = 0.0
    max_fraction: float = 1.0
    mode: str = ""

    def __post_init__(self):
        if not 0 <= self.min_fraction <= self.max_fraction <= 1:
            raise UserError(
                f"prefix_lm.min_fraction = {self.min_fraction}, "
                f"prefix_lm.max_fraction = {self.max_fraction}: expected "
                "0 <= min_fraction <= max_fraction <= 1."
            )

    def raw_length(self, length: int) -> int:
        """`length` minus the mode token; see `Corruption`.

        EOS needs no room, since at least one token is a target.
        """
        raw = length - bool(self.mode)
        if raw < 2:
            raise UserError(
                f"data.length = {length}: expected at least {2 + bool(self.mode)} for "
                "@prefix_lm()."
            )
        return raw

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "_PrefixLM":
        """The corruption for a tokenizer and row length; see `Corruption.bind`."""
        return _PrefixLM(self, tokenizer, length, raw_length)


class _PrefixLM:
    def __init__(self, settings: PrefixLM, tokenizer, length: int, raw: int):
        name = "@prefix_lm()"
        self.settings, self.length, self.raw_length = settings, length, raw
        # Targets are at most raw - 1 tokens, since at least one is read, and EOS.
        self.target_length = raw
        self.mode = np.zeros(0, np.int32)
        if settings.mode:
            self.mode = np.array([special_id(tokenizer, settings.mode, name)], np.int32)
        self.eos = np.array([end_id(tokenizer, name)], np.int32)

    def row(self, tokens: np.ndarray, rng: Rng, other=None) -> Row:
        """See `Corrupt.row`; fewer than two tokens give zeros of weight 0."""
        del other
        pairs = [] if len(tokens) < 2 else [self.corrupted(tokens, rng)]
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def corrupted(self, tokens: np.ndarray, rng: Rng):
        """(encoder inputs, targets), both int32 and with EOS."""
        share = rng.uniform(self.settings.min_fraction, self.settings.max_fraction)
        cut = min(max(round(share * len(tokens)), 1), len(tokens) - 1)
        read = np.concatenate([self.mode, tokens[:cut], self.eos])
        return read, np.concatenate([tokens[cut:], self.eos])
