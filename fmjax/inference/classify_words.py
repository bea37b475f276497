"""Classifying the words of texts with the head of a model: `run.classify_words`."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.text_template import text_template
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.data.tokenizers.words import encode_words
from fmjax.errors import UserError
from fmjax.inference.text_rows import TextRow, cut_rows
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.text_heads import text_outputs

# A text, which is cut at white space, or its words.
TextOrWords = str | Sequence[str]


class Word(NamedTuple):
    """A word of a text, and what a model says of it.

    Attributes:
      text: the word.
      start: its first character in the text; of a text given as words, in the words
        with a space between them.
      end: the character after its last.
      label: the name of the most probable class.
      probability: of that class.
    """

    text: str
    start: int
    end: int
    label: str
    probability: float


class WordRow(NamedTuple):
    """A text as ids with special tokens, and where each of its words begins.

    Attributes:
      row: ids and token types.
      words: (text, first character, first token) of each word that has tokens.
    """

    row: TextRow
    words: list[tuple[str, int, int]]


def check_classifies_words(model: nn.Module) -> None:
    """Raises a UserError for a model without a head that classifies tokens."""
    if not getattr(model, "token_classes", None):
        raise UserError(
            f"@{model.gin_name}() has no head that classifies tokens; expected a model "
            "with token_classes, such as an imported *ForTokenClassification."
        )


def word_rows(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    texts: Sequence[TextOrWords],
    truncate: bool,
) -> list[WordRow]:
    """The row of each text; arguments and errors as of `text_rows`.

    Words beyond the model's max_length are left out.
    """
    if tokenizer is None:
        raise UserError("This run has no tokenizer, so it cannot read texts.")
    if isinstance(texts, str):
        raise UserError("texts is one text; expected a list of texts, or of words.")
    template = text_template(tokenizer, 1)
    before = special_template.text_start(template)

    def wrap(ids: Sequence[list[int]]) -> TextRow:
        return TextRow(*special_template.fill(template, ids))

    found, every = [], []
    for text in texts:
        words = _words(text)
        pieces = encode_words(tokenizer, [word for word, _ in words])
        starts = before + np.cumsum([0, *map(len, pieces)])[:-1]
        every.append([[*itertools.chain.from_iterable(pieces)]])
        found.append(
            [
                (word, start, int(at))
                for (word, start), at, ids in zip(words, starts, pieces)
                if ids
            ]
        )
    rows = cut_rows(model, every, wrap, truncate)
    after = len(template) - 1 - before
    return [
        WordRow(row, [word for word in words if word[2] < len(row.ids) - after])
        for row, words in zip(rows, found)
    ]


def labelled(
    words: Sequence[tuple[str, int, int]],
    logits: Float[np.ndarray, "T classes"],
    labels: Sequence[str],
) -> list[Word]:
    """The words of a row with the most probable class of the first token of each."""
    found = []
    for text, start, at in words:
        scores = np.exp(logits[at] - logits[at].max())
        best = int(scores.argmax())
        share = float(scores[best] / scores.sum())
        found.append(Word(text, start, start + len(text), labels[best], share))
    return found


def token_logits(
    model: nn.Module, variables: Mapping[str, Any], text: TextInputs
) -> Float[Array, "B T classes"]:
    """The logits of the head for tokens, float32, of texts [B, T]."""
    return text_outputs(model, variables, text)["token_logits"]


def _words(text: TextOrWords) -> list[tuple[str, int]]:
    """The words of a text, and the first character of each."""
    if isinstance(text, str):
        return [(match[0], match.start()) for match in re.finditer(r"\S+", text)]
    found, start = [], 0
    for word in text:
        found.append((word, start))
        start += len(word) + 1
    return found
