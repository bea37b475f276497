"""BERT-style denoising by an encoder-decoder (T5, Raffel et al. 2020, 3.3.1)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.records import Row
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.tokenizers.specials import end_id, ordinary_ids, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require


@configurable("denoising")
@dataclasses.dataclass(frozen=True)
class Denoising:
    """BERT-style denoising: single tokens are masked; the target is the whole text.

    Of n tokens, round(rate · n) are corrupted.

    Attributes:
      rate: share of the tokens that is corrupted.
      masked: share of these that become [MASK]; the others become a random token.
    """

    rate: float = 0.15
    masked: float = 0.9

    def __post_init__(self):
        require(self, "rate", 0 <= self.rate < 1, "0 <= rate < 1")
        require(self, "masked", 0 <= self.masked <= 1, "0 to 1")

    def raw_length(self, length: int) -> int:
        """`length` - 1, since EOS is added; see `Corruption`."""
        if length < 2:
            raise UserError(
                f"data.length = {length}: expected at least 2 for @denoising()."
            )
        return length - 1

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "_Denoising":
        """The corruption for a tokenizer and row length; see `Corruption.bind`."""
        return _Denoising(self, tokenizer, length, raw_length)


class _Denoising:
    def __init__(self, settings: Denoising, tokenizer, length: int, raw: int):
        name = "@denoising()"
        self.settings, self.length, self.raw_length = settings, length, raw
        self.target_length = raw + 1
        self.eos = np.array([end_id(tokenizer, name)], np.int32)
        self.mask = special_id(tokenizer, "mask", name)
        self.ordinary = ordinary_ids(tokenizer)

    def row(self, tokens: np.ndarray, rng: Rng, other=None) -> Row:
        """See `Corrupt.row`."""
        del other
        pairs = [] if not len(tokens) else [self.corrupted(tokens, rng)]
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def corrupted(self, tokens: np.ndarray, rng: Rng):
        """(encoder inputs, targets), both int32 and with EOS."""
        count = round(self.settings.rate * len(tokens))
        chosen = rng.choice(len(tokens), count, replace=False)
        drawn = self.ordinary[rng.integers(len(self.ordinary), size=count)]
        is_masked = rng.random(count) < self.settings.masked
        read = tokens.astype(np.int32)
        read[chosen] = np.where(is_masked, self.mask, drawn)
        targets = np.concatenate([tokens, self.eos])
        return np.concatenate([read, self.eos]), targets
