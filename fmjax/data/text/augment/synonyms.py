"""Replacement of words by synonyms, and insertion of synonyms."""

import dataclasses
import functools
import re
from collections.abc import Sequence

from fmjax.configurable import configurable, path
from fmjax.data.text.augment import thesaurus
from fmjax.data.text.augment.augmentation import (
    Rng,
    TextAugmentation,
    check_rate,
    num_changes,
)
from fmjax.storage.paths import refuse_scheme

_WORD = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _WithSynonyms(TextAugmentation):
    rate: float = 0.1
    wordnet: str = path("/usr/share/wordnet")
    file: str | None = path(None)

    def __post_init__(self):
        check_rate(self)
        for name in ("wordnet", "file"):
            if (value := getattr(self, name)) is not None:
                refuse_scheme(value, f"{self.gin_name}.{name}")

    def check(self) -> None:
        """See `TextAugmentation`."""
        _ = self._thesaurus

    def digest(self) -> str:
        """See `TextAugmentation`."""
        if self.file is not None:
            return thesaurus.file_digest(self.file, self.gin_name)
        return thesaurus.wordnet_digest(self.wordnet, self.gin_name)

    @functools.cached_property
    def _thesaurus(self) -> thesaurus.Thesaurus:
        if self.file is not None:
            return thesaurus.of_file(self.file, self.gin_name)
        return thesaurus.of_wordnet(self.wordnet, self.gin_name)


@configurable("synonyms")
@dataclasses.dataclass(frozen=True)
class Synonyms(_WithSynonyms):
    """Replaces random words by one of their synonyms, in the same case.

    A word is looked up in lower case, without the punctuation around it, and as it is:
    WordNet has `film` but not `films`. Of WordNet, function words such as `have` have
    no synonyms.

    Attributes:
      rate: words that are replaced, all of which have synonyms, as a share of all words
        of the text; at least one unless it is 0.
      wordnet: folder of the files data.noun, … of WordNet, as in the Debian package
        wordnet-base; not read if there is a `file`.
      file: a text file of synonyms: each line has words of the same meaning, separated
        by commas. None for WordNet.
    """

    def change(self, words: Sequence[str], rng: Rng) -> list[str]:
        """See `TextAugmentation`."""
        count, changed = num_changes(self.rate, len(words)), list(words)
        if not count:
            return changed
        found = _found(words, self._thesaurus)
        for at in rng.permutation(list(found))[:count].tolist():
            before, word, after = _parts(words[at])
            changed[at] = before + _in_case(_drawn(found[at], rng), word) + after
        return changed


@configurable("insertion")
@dataclasses.dataclass(frozen=True)
class Insertion(_WithSynonyms):
    """Inserts synonyms of random words of the text at random places.

    Words are looked up as by `@synonyms()`.

    Attributes:
      rate: number of insertions for each word of the text; at least one unless it is 0.
      wordnet: folder of the files data.noun, … of WordNet, as in the Debian package
        wordnet-base; not read if there is a `file`.
      file: a text file of synonyms: each line has words of the same meaning, separated
        by commas. None for WordNet.
    """

    def change(self, words: Sequence[str], rng: Rng) -> list[str]:
        """See `TextAugmentation`."""
        count, changed = num_changes(self.rate, len(words)), list(words)
        if not count:
            return changed
        found = list(_found(words, self._thesaurus).values())
        for _ in range(count if found else 0):
            synonym = _drawn(_drawn(found, rng), rng)
            changed.insert(int(rng.integers(len(changed) + 1)), synonym)
        return changed


def _found(
    words: Sequence[str], synonyms: thesaurus.Thesaurus
) -> dict[int, tuple[str, ...]]:
    """Synonyms of the words that have some, by the words' places."""
    each = (synonyms.get(_parts(word)[1].lower()) for word in words)
    return {at: found for at, found in enumerate(each) if found}


def _parts(word: str) -> tuple[str, str, str]:
    """Punctuation before a word, the word, and punctuation after it."""
    before, inner, after = _WORD.fullmatch(word).groups()
    return before, inner, after


def _drawn(choices: Sequence, rng: Rng):
    return choices[int(rng.integers(len(choices)))]


def _in_case(synonym: str, word: str) -> str:
    """The synonym in capitals or with a capital, if the word that it replaces is."""
    if len(word) > 1 and word.isupper():
        return synonym.upper()
    return synonym[0].upper() + synonym[1:] if word[0].isupper() else synonym
