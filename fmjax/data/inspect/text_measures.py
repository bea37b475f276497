"""Measures of texts: lengths, scripts, repetitions, and signs of damage."""

import collections
import dataclasses
import re
from collections.abc import Callable

import numpy as np
import xxhash
from fontTools import unicodedata

# Texts whose bytes were read in another encoding: "Ã©" for "é", "â€™" for "’".
_MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf]|â€[\u0080-\u02ff\u2013-\u2122]|ï»¿")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_WORD = re.compile(r"\S+")
# Characters whose scripts are counted, at most.
_COUNTED = 1 << 24
# Scripts that say nothing of the language: punctuation and digits, and combining marks.
_SHARED = ("Zyyy", "Zinh", "Zzzz")
_QUANTILES = (0, 5, 50, 95, 100)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The distribution of a length.

    Attributes:
      mean: mean over all texts.
      quantiles: minimum, 5%, median, 95% and maximum.
    """

    mean: float
    quantiles: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TextReport:
    """Measures of the texts that were read.

    Attributes:
      texts: number of texts that are neither blank nor invalid.
      bytes: bytes in UTF-8 of these.
      characters: lengths in characters; None without texts.
      words: lengths in words, divided at white space; None without texts.
      tokens: lengths in tokens; None if they are not counted.
      tokens_per_byte: tokens a byte of all texts whose tokens are counted; None if
        there are none.
      scripts: Unicode scripts → share of the letters and signs that belong to one, from
        the most frequent.
      blank: number of texts that are empty or white space alone.
      not_utf8: number of texts that are not UTF-8.
      repeated: number of texts that are equal to an earlier one.
      control_characters: number of texts with control characters other than tab and
        line ends.
      replacement_characters: number of texts with U+FFFD, which stands for bytes that
        could not be decoded.
      mojibake: number of texts that look as if decoded by another encoding.
      mojibake_example: from the first of these.
    """

    texts: int
    bytes: int
    characters: Lengths | None
    words: Lengths | None
    tokens: Lengths | None
    tokens_per_byte: float | None
    scripts: dict[str, float]
    blank: int
    not_utf8: int
    repeated: int
    control_characters: int
    replacement_characters: int
    mojibake: int
    mojibake_example: str


class TextMeasures:
    """Measures texts one after another."""

    def __init__(self):
        """Measures nothing yet."""
        self._hashes: set[int] = set()
        self._lengths: dict[str, list[int]] = collections.defaultdict(list)
        self._characters: collections.Counter = collections.Counter()
        self._counts: collections.Counter = collections.Counter()
        self._example = ""

    def add(
        self, content: bytes | str, encode: Callable[[str], list[int]] | None = None
    ) -> None:
        """Measures a text, unless it is damaged.

        Args:
          content: the text, as it is or in UTF-8.
          encode: tokenizes it; None if its tokens are not counted.
        """
        try:
            content = content.encode() if isinstance(content, str) else content
            text = content.decode()
        except UnicodeError:
            self._counts["not_utf8"] += 1
            return
        if not text.strip():
            self._counts["blank"] += 1
            return
        digest = xxhash.xxh3_64_intdigest(content)
        self._counts["repeated"] += digest in self._hashes
        self._hashes.add(digest)
        self._counts["bytes"] += len(content)
        self._lengths["characters"].append(len(text))
        self._lengths["words"].append(sum(1 for _ in _WORD.finditer(text)))
        if encode is not None:
            self._lengths["tokens"].append(len(encode(text)))
            self._counts["tokenized"] += len(content)
        if self._counts["counted"] < _COUNTED:
            self._counts["counted"] += len(text)
            self._characters.update(text)
        self._counts["control_characters"] += bool(_CONTROL.search(text))
        self._counts["replacement_characters"] += "\ufffd" in text
        if found := _MOJIBAKE.search(text):
            self._counts["mojibake"] += 1
            if not self._example:
                begin = max(found.start() - 20, 0)
                self._example = text[begin : found.end() + 20].replace("\n", " ")

    def report(self) -> TextReport:
        """The measures so far."""
        tokens = self._lengths["tokens"]
        size = self._counts["bytes"]
        names = (
            "blank", "not_utf8", "repeated", "control_characters",
            "replacement_characters", "mojibake",
        )  # fmt: skip
        return TextReport(
            texts=len(self._lengths["characters"]),
            bytes=size,
            characters=_lengths(self._lengths["characters"]),
            words=_lengths(self._lengths["words"]),
            tokens=_lengths(tokens),
            tokens_per_byte=(
                sum(tokens) / self._counts["tokenized"] if tokens else None
            ),
            scripts=script_shares(self._characters),
            mojibake_example=self._example,
            **{name: self._counts[name] for name in names},
        )


def script_shares(characters: dict[str, int]) -> dict[str, float]:
    """The share of each Unicode script, by its name, from the most frequent.

    Args:
      characters: how often each character occurs. Those that many scripts share, such
        as punctuation, do not count.
    """
    counts: collections.Counter = collections.Counter()
    for character, count in characters.items():
        script = unicodedata.script(character)
        if script not in _SHARED:
            counts[script] += count
    total = sum(counts.values())
    return {
        unicodedata.script_name(script): count / total
        for script, count in counts.most_common()
    }


def _lengths(values: list[int]) -> Lengths | None:
    if not values:
        return None
    found = np.percentile(values, _QUANTILES, method="lower").astype(int).tolist()
    return Lengths(float(np.mean(values)), tuple(found))
