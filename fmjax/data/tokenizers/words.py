"""Tokenizing a text word by word, so that the tokens of each word are known."""

import functools
from collections.abc import Sequence

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """The ids of each word of a text whose words have a space between them.

    As transformers' tokenizers do with `is_split_into_words`: a word is tokenized by
    itself, with the space before it where the vocabulary has it in tokens.
    """
    if not words:
        return []
    first, *others = words
    space = _space(tokenizer)
    encoded = [tokenizer.encode(first)]
    encoded += [tokenizer.encode(space + word) for word in others]
    return [list(ids) for ids in encoded]


@functools.lru_cache(maxsize=16)
def _space(tokenizer: Tokenizer) -> str:
    """What a word that is not the first is tokenized with: a space, or nothing.

    Nothing, where the tokenizer puts a space before every text itself.
    """
    try:
        word, both, spaced = (list(tokenizer.encode(x)) for x in ("a", "a a", " a"))
    except UserError:  # A vocabulary of characters without one of these.
        return " "
    return "" if both == word + word != word + spaced else " "
