"""Texts as rows of ids: with special tokens, no longer than the model reads, padded."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError
from fmjax.say_once import say_once

# Rows are padded to a power of two, at least this, so that few shapes are compiled.
_SHORTEST = 16

TextOrPair = str | tuple[str, str]


class TextRow(NamedTuple):
    """Ids of a text, or of two, with special tokens, and the token type of each."""

    ids: list[int]
    types: list[int]


def text_rows(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    texts: Sequence[TextOrPair],
    wrap: Callable[[Sequence[list[int]]], TextRow],
    truncate: bool,
    max_length: int | None = None,
) -> list[TextRow]:
    """The row of each text, or pair of texts.

    Args:
      model: the model that reads them.
      tokenizer: of the run.
      texts: the texts.
      wrap: puts special tokens around the ids of one or two texts.
      truncate: whether to cut what is longer than the model's max_length, of a pair the
        second text; a line says how many were cut.
      max_length: a smaller limit, of the run's embedding; None for the model's alone.

    Raises:
      UserError: there is no tokenizer, there are no texts, or one has no tokens or too
        many.
    """
    if tokenizer is None:
        raise UserError("This run has no tokenizer, so it cannot read texts.")
    if isinstance(texts, str):
        raise UserError("texts is one text; expected a list of texts.")
    every = []
    for number, text in enumerate(texts):
        parts = text if isinstance(text, (tuple, list)) else (text,)
        if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
            raise UserError(f"texts[{number}]: expected a text, or a pair of texts.")
        every.append([list(tokenizer.encode(part)) for part in parts])
    return cut_rows(model, every, wrap, truncate, max_length)


def cut_rows(
    model: nn.Module,
    texts: Sequence[list[list[int]]],
    wrap: Callable[[Sequence[list[int]]], TextRow],
    truncate: bool,
    max_length: int | None = None,
) -> list[TextRow]:
    """The row of the ids of each text, or pair of texts; see `text_rows`."""
    if not len(texts):
        raise UserError("There are no texts; expected at least one.")
    longest, rows, cut = model.max_length, [], 0
    binding = f"{model.gin_name}.max_length"
    if max_length is not None and max_length < longest:
        longest, binding = max_length, "text_embedding.max_length"
    for number, ids in enumerate(texts):
        row = wrap(ids)
        if (excess := len(row.ids) - longest) > 0 and truncate:
            cut += 1
            row = wrap([*ids[:-1], ids[-1][: max(0, len(ids[-1]) - excess)]])
        if not row.ids:
            raise UserError(f"texts[{number}] has no tokens; expected some text.")
        if len(row.ids) > longest:
            raise UserError(
                f"texts[{number}] has {len(row.ids)} tokens, more than "
                f"{binding} = {longest}; truncate = True cuts it."
            )
        rows.append(row)
    if cut:
        say_once(
            f"{cut:,} of {len(rows):,} texts have more than "
            f"{binding} = {longest} tokens; the rest is not read."
        )
    return rows


def of_rows(
    compute: Callable[[dict[str, np.ndarray]], Array],
    rows: Sequence[TextRow],
    size: int,
    longest: int,
    padding: int,
) -> list[np.ndarray]:
    """What `compute` gives for each row, in the order of the rows.

    Args:
      compute: from `tokens`, `token_types` and `padding_mask`, [size, T], to an array
        of as many rows. Rows of similar length are together; those that fill a batch
        have one token.
      rows: the rows, at least one.
      size: number of rows of a batch.
      longest: the most tokens that the model reads.
      padding: id of padding.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for numbers, arrays in _batches(rows, size, longest, padding):
        for number, result in zip(numbers, np.asarray(compute(arrays))):
            found[number] = result
    return found


def _batches(
    rows: Sequence[TextRow], size: int, longest: int, padding: int
) -> Iterator[tuple[list[int], dict[str, Int[np.ndarray, "B T"]]]]:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        needed = max(len(rows[i].ids) for i in numbers)
        length = min(longest, max(_SHORTEST, 1 << (needed - 1).bit_length()))
        tokens = np.full((size, length), padding, np.int32)
        types = np.zeros((size, length), np.int32)
        mask = np.zeros((size, length), bool)
        mask[:, 0] = True
        for at, i in enumerate(numbers):
            end = len(rows[i].ids)
            tokens[at, :end], types[at, :end] = rows[i]
            mask[at, :end] = True
        yield numbers, {"tokens": tokens, "token_types": types, "padding_mask": mask}
