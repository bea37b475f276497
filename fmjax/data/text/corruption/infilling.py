"""Text infilling and sentence permutation (BART, Lewis et al. 2020, section 2.2)."""

import dataclasses

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.records import Row
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.data.tokenizers.specials import end_id, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require


@configurable("infilling")
@dataclasses.dataclass(frozen=True)
class Infilling:
    """Text infilling: each span becomes one [MASK]; the target is the whole text.

    Span lengths have a Poisson distribution; a span of length 0 inserts a [MASK].

    Attributes:
      rate: share of the tokens in spans (BART: 0.3).
      mean_span: mean span length, λ (BART: 3).
      permute_sentences: whether the sentences are shuffled.
      mask: whether a span is replaced by [MASK]; if not, it is deleted (AlexaTM).
    """

    rate: float = 0.3
    mean_span: float = 3.0
    permute_sentences: bool = True
    mask: bool = True

    def __post_init__(self):
        require(self, "rate", 0 <= self.rate < 1, "0 <= rate < 1")
        require(self, "mean_span", self.mean_span > 0, "more than 0")

    def raw_length(self, length: int) -> int:
        """`length` - 1, since EOS is added; see `Corruption`.

        There are never more masks than masked tokens.
        """
        if length < 2:
            raise UserError(
                f"data.length = {length}: expected at least 2 for @infilling()."
            )
        return length - 1

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "_Infilling":
        """The corruption for a tokenizer and row length; see `Corruption.bind`."""
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
        """(encoder inputs, targets), both int32 and with EOS."""
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
            # More masks than masked tokens would not fit: remove spans of length 0.
            surplus = len(lengths) - lengths.sum()
            if surplus > 0:
                lengths = np.delete(lengths, np.flatnonzero(lengths == 0)[:surplus])
        # Positions of the spans among the kept tokens.
        count = len(tokens) - lengths.sum()
        gaps = np.sort(rng.integers(0, count + 1, len(lengths)))
        # Lengths of kept text and spans in turn; text is first and last.
        parts = np.empty(2 * len(lengths) + 1, np.int64)
        parts[::2] = np.diff(gaps, prepend=0, append=count)
        parts[1::2] = lengths
        kept = tokens[np.repeat(np.arange(len(parts)) % 2 == 0, parts)]
        if self.mask is None:
            return kept
        is_text = np.ones(count + len(lengths), bool)
        is_text[gaps + np.arange(len(lengths))] = False
        read = np.full(len(is_text), self.mask, np.int32)
        read[is_text] = kept
        return read

    def _spans(self, budget: int, rng: Rng) -> np.ndarray:
        """Poisson lengths with the sum `budget`; the last one is truncated."""
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
    """bool [V]: whether the text of a token ends in . ! ? or a newline."""
    ends = (".", "!", "?", "。", "！", "？", "\n")
    texts = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    return np.array([text.rstrip(" ").endswith(ends) for text in texts])
