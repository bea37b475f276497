"""Masked tokens (BERT, Devlin et al. 2019, section 3.1), and next sentences."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.text.packing import Row
from fmjax.data.tokenizers.specials import ordinary_ids, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError


@configurable("masking")
@dataclasses.dataclass(frozen=True)
class Masking:
    """Some tokens are chosen to be predicted; most of them are masked.

    A row is [CLS] text [SEP], or with next sentences [CLS] A [SEP] B [SEP]: a piece of
    text cut anywhere, B in half of the rows the end of another piece instead.

    Attributes:
      rate: share of a row's tokens that is chosen, at least one.
      masked: share of the chosen that becomes [MASK]; ELECTRA masks all.
      replaced: share of them that becomes any token; the rest stays.
      whole_words: choose words, as they start in the vocabulary, with all their tokens;
        of one that alone exceeds the rate, single tokens.
      next_sentence: whether rows hold two halves, and say if one followed the other.
    """

    rate: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1
    whole_words: bool = False
    next_sentence: bool = False

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise UserError(f"masking.rate = {self.rate}: expected 0 < x < 1.")
        shares = (self.masked, self.replaced)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise UserError(
                f"masking.masked = {self.masked}, masking.replaced = {self.replaced}: "
                "expected shares of at most 1 together."
            )

    def raw_length(self, length: int) -> int:
        """`length` less [CLS] and the one or two [SEP]; see `Corruption`."""
        around = 3 if self.next_sentence else 2
        if length < around + 2:
            raise UserError(
                f"data.length = {length} is too small for @masking(); expected at "
                f"least {around + 2}."
            )
        return length - around

    def most_targets(self, length: int) -> int:
        """The most tokens that are chosen in rows of `length`."""
        return self.num_chosen(self.raw_length(length))

    def num_chosen(self, tokens: int) -> int:
        """How many of a number of tokens are chosen; with whole words, at most."""
        return max(round(self.rate * tokens), 1)

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "_Masking":
        """For a vocabulary and rows of `length`; see `Corruption`."""
        return _Masking(self, tokenizer, length, raw_length)


class _Masking:
    def __init__(self, settings: Masking, tokenizer, length: int, raw: int):
        name = "@masking()"
        self.settings, self.length, self.raw_length = settings, length, raw
        self.mask, self.cls, self.sep = (
            special_id(tokenizer, which, name) for which in ("mask", "cls", "sep")
        )
        self.ordinary = ordinary_ids(tokenizer)
        self.word_starts = _word_starts(tokenizer) if settings.whole_words else None

    def row(self, tokens: np.ndarray, rng: Rng, other: Callable[[], np.ndarray]) -> Row:
        """See `Corrupt.row`."""
        T = self.length
        row = {
            name: np.zeros(T, np.int32) for name in ("tokens", "targets", "segment_ids")
        }
        row["weights"] = np.zeros(T, np.float32)
        if self.settings.next_sentence:
            row |= {
                "token_types": np.zeros(T, np.int32),
                "next_sentence": np.zeros((), np.int32),
                "next_sentence_weights": np.zeros((), np.float32),
            }
        if not len(tokens):
            return row
        sentences = [tokens]
        if self.settings.next_sentence and len(tokens) > 1:
            sentences = self._sentences(tokens, rng, other, row)
        at = 1
        row["tokens"][0] = self.cls
        is_text = np.zeros(T, bool)
        for number, sentence in enumerate(sentences):
            end = at + len(sentence)
            row["tokens"][at:end] = sentence
            row["tokens"][end] = self.sep
            is_text[at:end] = True
            if number:
                row["token_types"][at : end + 1] = 1
            at = end + 1
        row["segment_ids"][:at] = 1
        self._mask(row, np.flatnonzero(is_text), rng)
        return row

    def _sentences(self, tokens, rng: Rng, other, row: Row) -> list[np.ndarray]:
        # Of halves, the second's length alone would often tell where it is from.
        cut = int(rng.integers(1, len(tokens)))
        first, second = tokens[:cut], tokens[cut:]
        if rng.random() < 0.5:
            row["next_sentence"][...] = 1
            second = other()[-len(second) :]
        row["next_sentence_weights"][...] = 1
        return [first, second]

    def _mask(self, row: Row, places: np.ndarray, rng: Rng) -> None:
        chosen = self._choose(row["tokens"], places, rng)
        row["targets"][chosen] = row["tokens"][chosen]
        row["weights"][chosen] = 1
        dice = rng.random(len(chosen))
        masked = dice < self.settings.masked
        replaced = ~masked & (dice < self.settings.masked + self.settings.replaced)
        row["tokens"][chosen[masked]] = self.mask
        drawn = rng.integers(len(self.ordinary), size=replaced.sum())
        row["tokens"][chosen[replaced]] = self.ordinary[drawn]

    def _choose(self, tokens, places: np.ndarray, rng: Rng) -> np.ndarray:
        count = self.settings.num_chosen(len(places))
        if self.word_starts is None:
            return places[np.sort(rng.permutation(len(places))[:count])]
        word = self._words(tokens, places, count)
        sizes = np.bincount(word)
        order = rng.permutation(len(sizes))
        chosen = np.zeros(len(sizes), bool)
        for i, size in zip(order.tolist(), sizes[order].tolist()):
            if size <= count:  # A word that no longer fits is passed over.
                chosen[i] = True
                count -= size
        return places[chosen[word]]

    def _words(self, tokens, places: np.ndarray, most: int) -> np.ndarray:
        """int [n]: which word each place belongs to; none has more than `most`."""
        starts = self.word_starts[tokens[places]]
        starts[0] = True
        # No word goes on behind the [SEP] between two sentences.
        starts[1:] |= np.diff(places) > 1
        word = np.cumsum(starts) - 1
        # Without spaces, as in Chinese, a sentence would be one word: masked whole, or
        # never. Its tokens count as words.
        starts |= np.bincount(word)[word] > most
        return np.cumsum(starts) - 1


def _word_starts(tokenizer: Tokenizer) -> np.ndarray:
    try:
        return tokenizer.word_starts()
    except UserError as error:
        raise UserError(f"masking.whole_words = True: {error}") from error
