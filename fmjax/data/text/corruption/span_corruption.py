"""Span corruption (T5, Raffel et al. 2020, section 3.1.4)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.records import Row
from fmjax.data.text.corruption.corruption import Rng, partition
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.tokenizers.specials import end_id, sentinel_ids, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require


@configurable("span_corruption")
@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Span corruption: sentinels replace spans; targets are the sentinels and spans.

    Of n tokens, round(rate · n) are removed in round(rate · n / mean_span) spans. The
    lengths of the spans and of the text between them are uniform over all partitions.
    As in T5's code, the text begins with kept tokens and ends with a span, so a single
    span is the end of the text. Pieces of text are so long that the encoder's row is
    full: 568 tokens for a row of 512 at the default rates, with 114 targets.

    Attributes:
      rate: share of the tokens that is removed.
      mean_span: mean length of a span.
      mode: special token before the inputs, such as UL2's "[R]"; "" for none.
    """

    rate: float = 0.15
    mean_span: float = 3.0
    mode: str = ""

    def __post_init__(self):
        require(self, "rate", 0 < self.rate < 1, "0 < rate < 1")
        require(self, "mean_span", self.mean_span >= 1, "at least 1")

    def lengths(self, raw: int) -> tuple[int, int]:
        """(encoder tokens, targets) for `raw` tokens of text, both with EOS."""
        noise, spans = self.counts(raw)
        read = raw - noise + spans + 1 + bool(self.mode)
        return read, noise + spans + 1

    def counts(self, raw: int) -> tuple[int, int]:
        """(removed tokens, spans) for `raw` tokens of text; `raw` is at least 2."""
        noise = min(max(round(raw * self.rate), 1), raw - 1)
        spans = max(round(noise / self.mean_span), 1)
        return noise, min(spans, raw - noise)

    def raw_length(self, length: int) -> int:
        """The maximum number of tokens for an encoder row; see `Corruption`."""
        raw = 2
        while self.lengths(raw + 1)[0] <= length:
            raw += 1
        if self.lengths(raw)[0] > length:
            raise UserError(
                f"data.length = {length}: expected at least {self.lengths(2)[0]} for "
                "@span_corruption()."
            )
        return raw

    def bind(
        self, tokenizer: Tokenizer, length: int, raw_length: int
    ) -> "_SpanCorruption":
        """The corruption for a tokenizer and row length; see `Corruption.bind`."""
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
        """See `Corrupt.row`; fewer than two tokens give zeros of weight 0."""
        del other
        pairs = [] if len(tokens) < 2 else [self.corrupted(tokens, rng)]
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def corrupted(self, tokens: np.ndarray, rng: Rng):
        """(encoder inputs, targets), both int32 and with EOS."""
        noise, spans = self.settings.counts(len(tokens))
        # Kept text and spans alternate, text first.
        kept = partition(len(tokens) - noise, spans, rng)
        removed = partition(noise, spans, rng)
        starts = np.cumsum(kept + removed) - removed
        lengths = np.stack([kept, removed], axis=1).reshape(-1)
        is_noise = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
        sentinels = self.sentinels[:spans]
        # A sentinel replaces the first token of its span.
        marked, is_kept = tokens.copy(), ~is_noise
        marked[starts], is_kept[starts] = sentinels, True
        read = np.concatenate([self.mode, marked[is_kept], self.eos])
        is_text = np.ones(noise + spans, bool)
        is_text[np.cumsum(removed) - removed + np.arange(spans)] = False
        targets = np.empty(noise + spans, np.int32)
        targets[is_text], targets[~is_text] = tokens[is_noise], sentinels
        return read, np.concatenate([targets, self.eos])
