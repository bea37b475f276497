"""Span corruption (T5, Raffel et al. 2020, section 3.1.4)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.text.corruption.corruption import Rng, partition
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.text.packing import Row
from fmjax.data.tokenizers.specials import end_id, sentinel_ids, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError


@configurable("span_corruption")
@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Spans are replaced by sentinels; targets are the sentinels with their spans.

    With n tokens, round(rate · n) are taken out in round(rate · n / mean_span) spans;
    how long each is, and what lies between, is uniform over all partitions. As in T5's
    own code the text begins with what is kept and ends with a span, so that a single
    span is the end of the text. Text comes in pieces so long that the encoder's row is
    full: 568 tokens for 512 at the default rates, with 114 targets.

    Attributes:
      rate: share of the tokens that is taken out.
      mean_span: mean length of a span.
      mode: a special token put in front of what is read, such as UL2's "[R]"; none if
        empty.
    """

    rate: float = 0.15
    mean_span: float = 3.0
    mode: str = ""

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise UserError(f"span_corruption.rate = {self.rate}: expected 0 < x < 1.")
        if self.mean_span < 1:
            raise UserError(f"span_corruption.mean_span = {self.mean_span} is below 1.")

    def lengths(self, raw: int) -> tuple[int, int]:
        """(tokens read, targets) of `raw` tokens of text, EOS included."""
        noise, spans = self.counts(raw)
        read = raw - noise + spans + 1 + bool(self.mode)
        return read, noise + spans + 1

    def counts(self, raw: int) -> tuple[int, int]:
        """(tokens taken out, spans) of `raw` tokens of text, at least 2."""
        noise = min(max(round(raw * self.rate), 1), raw - 1)
        spans = max(round(noise / self.mean_span), 1)
        return noise, min(spans, raw - noise)

    def raw_length(self, length: int) -> int:
        """The most tokens whose corruption fits an encoder's row; see `Corruption`."""
        raw = 2
        while self.lengths(raw + 1)[0] <= length:
            raw += 1
        if self.lengths(raw)[0] > length:
            raise UserError(
                f"data.length = {length} is too small for @span_corruption(): two "
                f"tokens of text become {self.lengths(2)[0]}."
            )
        return raw

    def bind(
        self, tokenizer: Tokenizer, length: int, raw_length: int
    ) -> "_SpanCorruption":
        """For a vocabulary, and encoder rows of `length`; see `Corruption`."""
        return _SpanCorruption(self, tokenizer, length, raw_length)


class _SpanCorruption:
    def __init__(self, settings: SpanCorruption, tokenizer, length: int, raw: int):
        self.settings, self.length, self.raw_length = settings, length, raw
        self.target_length = settings.lengths(raw)[1]
        name = "@span_corruption()"
        self.eos = np.array([end_id(tokenizer, name)], np.int32)
        self.sentinels = sentinel_ids(tokenizer, settings.counts(raw)[1], name)
        self.mode = np.zeros(0, np.int32)
        if settings.mode:
            self.mode = np.array([special_id(tokenizer, settings.mode, name)], np.int32)

    def row(self, tokens: np.ndarray, rng: Rng, other=None) -> Row:
        """See `Corrupt.row`; a single token is too few and gives zeros."""
        del other
        pairs = [] if len(tokens) < 2 else [self.corrupted(tokens, rng)]
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def corrupted(self, tokens: np.ndarray, rng: Rng):
        """The encoder's inputs, and the targets."""
        noise, spans = self.settings.counts(len(tokens))
        # Kept text and spans take turns, text first.
        kept = partition(len(tokens) - noise, spans, rng)
        taken = partition(noise, spans, rng)
        starts = np.cumsum(kept + taken) - taken
        turns = np.stack([kept, taken], axis=1).reshape(-1)
        is_noise = np.repeat(np.arange(2 * spans) % 2 == 1, turns)
        sentinels = self.sentinels[:spans]
        # A sentinel takes the place of the first token of its span.
        marked, left = tokens.copy(), ~is_noise
        marked[starts], left[starts] = sentinels, True
        read = np.concatenate([self.mode, marked[left], self.eos])
        is_text = np.ones(noise + spans, bool)
        is_text[np.cumsum(taken) - taken + np.arange(spans)] = False
        targets = np.empty(noise + spans, np.int32)
        targets[is_text], targets[~is_text] = tokens[is_noise], sentinels
        return read, np.concatenate([targets, self.eos])
