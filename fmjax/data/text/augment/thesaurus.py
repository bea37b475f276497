"""Synonyms from WordNet's files (its manual, wndb(5WN)) or from a text file."""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fmjax.data.sources.file_digest import digest_file, digest_files
from fmjax.errors import UserError

# From a word in lower case to its synonyms, sorted.
Thesaurus = dict[str, tuple[str, ...]]

_FILES = ("data.adj", "data.adv", "data.noun", "data.verb")
_MARKER = re.compile(r"\((a|p|ip)\)$")  # where an adjective may stand
# Function words, which in WordNet have unrelated senses: "a" is a blood group, "have"
# are the rich.
_FUNCTION_WORDS = """
a about above after again against all am an and any are as at be because
been before being below between both but by can could did do does doing down
during each few for from further had has have having he her here hers
herself him himself his how i if in into is it its itself just me might more
most must my myself no nor not now of off on once only or other ought our
ours ourselves out over own same shall she should so some such than that the
their theirs them themselves then there these they this those through to too
under until up us very was we were what when where which while who whom
whose why will with would you your yours yourself yourselves
"""


def of_wordnet(folder: str, owner: str) -> Thesaurus:
    """Words that share a synset, of all parts of speech, but of function words none.

    Args:
      folder: the folder of data.noun, data.verb, data.adj and data.adv.
      owner: gin name of the configurable, for messages.

    Raises:
      UserError: a file is missing or damaged.
    """
    return _of_wordnet(Path(folder), wordnet_digest(folder, owner))


def of_file(file: str, owner: str) -> Thesaurus:
    """Synonyms of a file with groups of words, separated by commas, one in each line.

    Args:
      file: the file, in UTF-8.
      owner: gin name of the configurable, for messages.

    Raises:
      UserError: the file cannot be read, has no group, or a line has only one word.
    """
    return _of_file(Path(file), file_digest(file, owner), owner)


def wordnet_digest(folder: str, owner: str) -> str:
    """Digest of WordNet's files; raises a UserError if one is missing."""
    try:
        return digest_files([Path(folder).absolute() / name for name in _FILES])
    except OSError as error:
        raise UserError(
            f"{owner}.wordnet = {folder!r}: expected a folder with WordNet's files "
            f"{', '.join(_FILES)} ({error}). Install the Debian package wordnet-base, "
            f"or bind {owner}.file to a file of synonyms."
        ) from error


def file_digest(file: str, owner: str) -> str:
    """Digest of a file of synonyms; raises a UserError if it cannot be read."""
    try:
        return digest_file(Path(file))
    except OSError as error:
        raise UserError(
            f"{owner}.file = {file!r}: expected a file of synonyms ({error})."
        ) from error


@functools.lru_cache(maxsize=2)
def _of_wordnet(folder: Path, digest: str) -> Thesaurus:
    del digest  # only a key of the cache
    groups = (words for name in _FILES for words in _synsets(folder / name))
    excluded = set(_FUNCTION_WORDS.split())
    found = _grouped(groups)
    return {word: found[word] for word in found if word not in excluded}


def _synsets(file: Path) -> Iterator[list[str]]:
    """Yields the words of each synset of a data file.

    Its line: offset, file number, part of speech, number of words in hexadecimal, and
    for each word the word and a number.
    """
    # Bytes that are not UTF-8 are in glosses, or break a line that is then reported.
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith("  "):
                continue  # the license
            try:
                count = int(line.split(" ", 4)[3], 16)
                words = line.split(" ", 4 + 2 * count)[4:-1:2]
            except (IndexError, ValueError):
                words, count = [], 1
            if len(words) != count:
                raise UserError(
                    f"{file}, line {number}: {line[:60]!r} is no synset of WordNet."
                )
            yield [_MARKER.sub("", word).replace("_", " ") for word in words]


@functools.lru_cache(maxsize=8)
def _of_file(file: Path, digest: str, owner: str) -> Thesaurus:
    del digest  # only a key of the cache
    name, groups = f"{owner}.file = {str(file)!r}", []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: expected UTF-8 ({error}).") from error
    for number, line in enumerate(lines, 1):
        words = [" ".join(word.split()) for word in line.split(",") if word.strip()]
        if len(words) == 1:
            raise UserError(
                f"{name}, line {number}: found {line.strip()[:60]!r}; expected two or "
                "more words, separated by commas."
            )
        groups.append(words)
    if not any(groups):
        raise UserError(f"{name}: expected lines of synonyms; the file has none.")
    return _grouped(groups)


def _grouped(groups: Iterable[list[str]]) -> Thesaurus:
    """Synonyms of each word without a space, of all the groups that it is in."""
    found: dict[str, set[str]] = {}
    for words in groups:
        for word in words:
            if " " not in word:
                others = (other for other in words if other.lower() != word.lower())
                found.setdefault(word.lower(), set()).update(others)
    return {word: tuple(sorted(others)) for word, others in found.items() if others}
