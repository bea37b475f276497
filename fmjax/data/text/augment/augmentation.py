"""Augmentations of texts: random changes of words, drawn anew each time.

Easy data augmentation (EDA, Wei & Zou 2019, arXiv:1901.11196). To add one, write a
file with a configurable that derives from `TextAugmentation`. Draw all random numbers
from the given generator, so that runs are reproducible.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, require

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class TrainingTexts:
    """All texts of a training split, of which some augmentations are made.

    Attributes:
      root: root of all caches.
      key: gives a JSON value that the texts depend on.
      read: yields the texts, as `words_of` their tokens joined by single spaces; they
        are read from caches, which must be there.
    """

    root: Path
    key: Callable[[], Any]
    read: Callable[[], Iterator[str]]


class TextAugmentation(abc.ABC):
    """Base class of random changes of a text's words."""

    @abc.abstractmethod
    def change(self, words: Sequence[str], rng: Rng) -> list[str]:
        """The changed words; not empty unless `words` is."""

    def check(self) -> None:
        """Reads the files that it needs; raises a UserError if that fails."""
        return

    def digest(self) -> str | None:
        """Digest of these files; None if there are none."""
        return None

    def of(self, texts: TrainingTexts) -> "TextAugmentation":
        """The augmentation of such texts; itself unless it depends on them all."""
        del texts
        return self

    def prepare(self) -> None:
        """Makes what it needs of the texts; every process calls it, once per run."""
        return


class TextAugmenter:
    """Changes some of the texts that are read, each by one augmentation.

    Caches hold tokens. A text to change is decoded, split at white space, changed,
    joined by single spaces and tokenized again; a text without a change keeps its
    tokens.
    """

    def __init__(
        self, parts: Sequence[TextAugmentation], share: float, tokenizer: Tokenizer
    ):
        """Reads what the augmentations need.

        Args:
          parts: at least one augmentation; each text draws one of them.
          share: share of the texts that are changed.
          tokenizer: of the texts.

        Raises:
          UserError: files of an augmentation are missing or damaged.
        """
        self._parts, self._share, self._tokenizer = tuple(parts), share, tokenizer
        for part in self._parts:
            part.check()

    def __call__(
        self, tokens: Int[np.ndarray, " n"], rng: Rng
    ) -> Int[np.ndarray, " m"]:
        """The tokens of a text, int [n], after a random change, int32 [m].

        Texts that cannot be tokenized after the change, since a synonym has characters
        that the vocabulary lacks, stay as they are.
        """
        if rng.random() >= self._share:
            return tokens
        part = self._parts[int(rng.integers(len(self._parts)))]
        words = words_of(tokens, self._tokenizer)
        changed = part.change(words, rng)
        if changed == words:
            return tokens
        try:
            ids = self._tokenizer.encode(" ".join(changed))
        except UserError:
            return tokens
        return np.array(ids, np.int32) if len(ids) else tokens


def words_of(tokens: Int[np.ndarray, " n"], tokenizer: Tokenizer) -> list[str]:
    """The words of a text, which are changed."""
    # A text that was cut within a character ends in U+FFFD.
    return tokenizer.decode(tokens).rstrip("\ufffd").split()


def check_rate(augmentation: TextAugmentation) -> None:
    """Raises a UserError unless the field `rate` is from 0 to 1."""
    require(augmentation, "rate", 0 <= augmentation.rate <= 1, "0 to 1")


def num_changes(rate: float, words: int) -> int:
    """`rate` times the number of words, rounded; at least 1 unless it is 0."""
    return max(round(rate * words), 1) if rate and words else 0
