"""Text infilling and sentence permutation (BART, Lewis et al. 2020, section 2.2)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.text.packing import Row
from fmjax.data.tokenizers.specials import end_id, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError


@configurable("infilling")
@dataclasses.dataclass(frozen=True)
class Infilling:
    """Spans become masks, sentences are permuted; the target is the whole text.

    Span lengths are Poisson; a span of length 0 puts a mask where nothing is missing.

    Attributes:
      rate: share of the tokens that is masked (0.3).
      mean_span: λ of the span lengths (3).
      permute_sentences: whether sentences are shuffled.
      mask: whether a span leaves a mask; AlexaTM's spans leave nothing behind.
    """

    rate: float = 0.3
    mean_span: float = 3.0
    permute_sentences: bool = True
    mask: bool = True

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise UserError(f"infilling.rate = {self.rate}: expected 0 ≤ x < 1.")
        if self.mean_span <= 0:
            raise UserError(f"infilling.mean_span = {self.mean_span} is not above 0.")

    def raw_length(self, length: int) -> int:
        """`length` less EOS: no more masks than masked tokens; see `Corruption`."""
        if length < 2:
            raise UserError(f"data.length = {length}: @infilling() needs at least 2.")
        return length - 1

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "_Infilling":
        """For a vocabulary and encoder rows of `length`; see `Corruption`."""
        return _Infilling(self, tokenizer, length, raw_length)


class _Infilling:
    def __init__(self, settings: Infilling, tokenizer, length: int, raw: int):
        name = "@infilling()"
        self.settings, self.length, self.raw_length = settings, length, raw
        self.target_length = raw + 1
        self.eos = np.array([end_id(tokenizer, name)], np.int32)
        self.mask = special_id(tokenizer, "mask", name) if settings.mask else None
        self.ends = _ends_sentence(tokenizer) if settings.permute_sentences else None

    def row(self, tokens: np.ndarray, rng: Rng, other=None) -> Row:
        """See `Corrupt.row`."""
        del other
        pairs = [] if not len(tokens) else [self.corrupted(tokens, rng)]
        return encoder_decoder_row(pairs, self.length, self.target_length)

    def corrupted(self, tokens: np.ndarray, rng: Rng):
        """The encoder's inputs, and the targets."""
        read = tokens if self.ends is None else self._permuted(tokens, rng)
        read = np.concatenate([self._infilled(read, rng), self.eos])
        return read, np.concatenate([tokens, self.eos])

    def _permuted(self, tokens: np.ndarray, rng: Rng) -> np.ndarray:
        sentences = np.split(tokens, np.flatnonzero(self.ends[tokens]) + 1)
        order = rng.permutation(len(sentences))
        return np.concatenate([sentences[i] for i in order])

    def _infilled(self, tokens: np.ndarray, rng: Rng) -> np.ndarray:
        budget = round(self.settings.rate * len(tokens))
        lengths = self._spans(budget, rng)
        if not len(lengths):
            return tokens
        if self.mask is not None:
            # More masks than masked tokens would not fit: leave out spans of none.
            surplus = len(lengths) - lengths.sum()
            if surplus > 0:
                lengths = np.delete(lengths, np.flatnonzero(lengths == 0)[:surplus])
        # Where each span lies among the tokens that are kept.
        count = len(tokens) - lengths.sum()
        gaps = np.sort(rng.integers(0, count + 1, len(lengths)))
        # Kept text and spans take turns, text first and last.
        turns = np.empty(2 * len(lengths) + 1, np.int64)
        turns[::2] = np.diff(gaps, prepend=0, append=count)
        turns[1::2] = lengths
        kept = tokens[np.repeat(np.arange(len(turns)) % 2 == 0, turns)]
        if self.mask is None:
            return kept
        is_text = np.ones(count + len(lengths), bool)
        is_text[gaps + np.arange(len(lengths))] = False
        read = np.full(len(is_text), self.mask, np.int32)
        read[is_text] = kept
        return read

    def _spans(self, budget: int, rng: Rng) -> np.ndarray:
        """Poisson lengths up to `budget` tokens, the last one cut."""
        mean = self.settings.mean_span
        lengths = rng.poisson(mean, int(2 * budget / mean) + 8)
        while (total := lengths.cumsum())[-1] < budget:
            lengths = np.concatenate([lengths, rng.poisson(mean, len(lengths))])
        if budget == 0:
            return lengths[:0]
        last = int(np.searchsorted(total, budget))
        lengths = lengths[: last + 1]
        lengths[-1] -= total[last] - budget
        return lengths


def _ends_sentence(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V]: whether a token ends a sentence: its text ends in . ! ? or a line."""
    ends = (".", "!", "?", "。", "！", "？", "\n")
    texts = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    return np.array([text.rstrip(" ").endswith(ends) for text in texts])
