"""Masked tokens (BERT, Devlin et al. 2019, section 3.1), and next sentences."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fmjax.configurable import configurable
from fmjax.data.records import Row
from fmjax.data.text.corruption.corruption import Rng
from fmjax.data.tokenizers.specials import ordinary_ids, special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require


@configurable("masking")
@dataclasses.dataclass(frozen=True)
class Masking:
    """Masked language modelling: some tokens are targets, most of these are masked.

    A row is [CLS] text [SEP], or with next sentences [CLS] A [SEP] B [SEP]. A and B are
    a piece of text cut at a random position; in half of the rows B is the end of
    another piece instead.

    Attributes:
      rate: share of a row's tokens that are targets; at least one token.
      masked: share of the targets that become [MASK]; 1 for ELECTRA.
      replaced: share of the targets that become a random token; the rest is unchanged.
      whole_words: whether whole words are chosen, with all their tokens. Tokens of a
        word that alone exceeds the rate are chosen singly.
      next_sentence: whether rows have two segments and a label whether the second is
        from another text.
    """

    rate: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1
    whole_words: bool = False
    next_sentence: bool = False

    def __post_init__(self):
        require(self, "rate", 0 < self.rate < 1, "0 < rate < 1")
        shares = (self.masked, self.replaced)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise UserError(
                f"masking.masked = {self.masked}, masking.replaced = {self.replaced}: "
                "expected shares of at least 0 with a sum of at most 1."
            )

    def raw_length(self, length: int) -> int:
        """`length` minus [CLS] and one or two [SEP]; see `Corruption`."""
        num_special = 3 if self.next_sentence else 2
        if length < num_special + 2:
            raise UserError(
                f"data.length = {length}: expected at least {num_special + 2} for "
                "@masking()."
            )
        return length - num_special

    def most_targets(self, length: int) -> int:
        """The maximum number of targets in rows of `length`."""
        return self.num_chosen(self.raw_length(length))

    def num_chosen(self, tokens: int) -> int:
        """The number of targets among `tokens` tokens; with whole words the maximum."""
        return max(round(self.rate * tokens), 1)

    def bind(self, tokenizer: Tokenizer, length: int, raw_length: int) -> "_Masking":
        """The corruption for a tokenizer and row length; see `Corruption.bind`."""
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
        # Cut at a random position: with two halves, the length of the second one would
        # often reveal whether it is from another text.
        cut = int(rng.integers(1, len(tokens)))
        first, second = tokens[:cut], tokens[cut:]
        if rng.random() < 0.5:
            row["next_sentence"][...] = 1
            second = other()[-len(second) :]
        row["next_sentence_weights"][...] = 1
        return [first, second]

    def _mask(self, row: Row, positions: np.ndarray, rng: Rng) -> None:
        chosen = self._choose(row["tokens"], positions, rng)
        row["targets"][chosen] = row["tokens"][chosen]
        row["weights"][chosen] = 1
        draws = rng.random(len(chosen))
        masked = draws < self.settings.masked
        replaced = ~masked & (draws < self.settings.masked + self.settings.replaced)
        row["tokens"][chosen[masked]] = self.mask
        drawn = rng.integers(len(self.ordinary), size=replaced.sum())
        row["tokens"][chosen[replaced]] = self.ordinary[drawn]

    def _choose(self, tokens, positions: np.ndarray, rng: Rng) -> np.ndarray:
        count = self.settings.num_chosen(len(positions))
        if self.word_starts is None:
            return positions[np.sort(rng.permutation(len(positions))[:count])]
        word = self._words(tokens, positions, count)
        sizes = np.bincount(word)
        order = rng.permutation(len(sizes))
        chosen = np.zeros(len(sizes), bool)
        for i, size in zip(order.tolist(), sizes[order].tolist()):
            if size <= count:  # Words that no longer fit are skipped.
                chosen[i] = True
                count -= size
        return positions[chosen[word]]

    def _words(self, tokens, positions: np.ndarray, maximum: int) -> np.ndarray:
        """The word at each position, int [n]; words have at most `maximum` tokens."""
        starts = self.word_starts[tokens[positions]]
        starts[0] = True
        # A word does not continue after the [SEP] between two sentences.
        starts[1:] |= np.diff(positions) > 1
        word = np.cumsum(starts) - 1
        # In text without spaces, such as Chinese, a sentence would be one word. The
        # tokens of such long words count as words.
        starts |= np.bincount(word)[word] > maximum
        return np.cumsum(starts) - 1


def _word_starts(tokenizer: Tokenizer) -> np.ndarray:
    try:
        return tokenizer.word_starts()
    except UserError as error:
        raise UserError(f"masking.whole_words = True: {error}") from error
