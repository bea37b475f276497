"""Vectors of texts: a language model's hidden states, pooled over the tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError
from fmjax.inference.special_tokens import with_specials
from fmjax.models.contracts import (
    GeneratesFromImages,
    GeneratesFromText,
    PredictsTokens,
)
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.say_once import say_once

Pooling = Literal["mean", "first", "last"]
# Rows are padded to a power of two, at least this, so that few shapes are compiled.
_MIN_LENGTH = 16


def text_rows(
    model: nn.Module, tokenizer: Tokenizer | None, texts: Sequence[str], imported: bool
) -> list[list[int]]:
    """Ids of each text with its special tokens, as many as the model has room for.

    Says once how many texts were cut.

    Raises:
      UserError: there are none, one has no tokens, the model does not read texts alone,
        or there is no tokenizer.
    """
    if not isinstance(model, PredictsTokens) or isinstance(model, GeneratesFromImages):
        raise UserError(
            f"@{model.gin_name}() does not read texts alone; expected a language model."
        )
    if tokenizer is None:
        raise UserError("this run has no tokenizer, so it cannot read text.")
    if not texts:
        raise UserError("there are no texts; expected at least one.")
    rows, cut = [], 0
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text)
        whole = with_specials(model, tokenizer, ids, imported=imported)
        if not whole:
            raise UserError(f"text {number} is empty; expected at least one token.")
        if (excess := len(whole) - model.max_length) > 0:
            cut += 1
            ids = ids[: len(ids) - excess]
            whole = with_specials(model, tokenizer, ids, imported=imported)
        rows.append(whole)
    if cut:
        say_once(
            f"{cut:,} of {len(rows):,} texts have more than "
            f"{model.gin_name}.max_length = {model.max_length} tokens; the rest is "
            "not read."
        )
    return rows


def pooled_vectors(
    model: nn.Module,
    variables: Mapping[str, Any],
    rows: Sequence[Sequence[int]],
    pooling: Pooling,
    batch_size: int,
) -> Float[np.ndarray, "N D"]:
    """The pooled hidden states of rows of ids; see `fmjax.inference.load.Run.embed`."""
    method = model.encode if isinstance(model, GeneratesFromText) else model.hidden

    @jax.jit
    def vectors(variables, tokens, padding_mask):
        text = TextInputs(tokens, padding_mask=padding_mask)
        hidden = model.apply(variables, text, method=method)["hidden"]
        return _pool(hidden.astype(jnp.float32), padding_mask, pooling)

    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for numbers, tokens, mask in _batches(rows, batch_size, model.max_length):
        pooled = np.asarray(vectors(variables, tokens, mask))
        for number, vector in zip(numbers, pooled):
            found[number] = vector
    return np.stack(found)


def _batches(
    rows: Sequence[Sequence[int]], size: int, max_length: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields numbers of rows, tokens and padding mask; rows of like length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), size):
        numbers = order[start : start + size]
        longest = max(len(rows[i]) for i in numbers)
        bucket = max(_MIN_LENGTH, 1 << (longest - 1).bit_length())
        tokens = np.zeros((size, min(bucket, max_length)), np.int32)
        mask = np.zeros(tokens.shape, bool)
        mask[:, 0] = True  # rows that fill the batch have a token too
        for at, i in enumerate(numbers):
            tokens[at, : len(rows[i])] = rows[i]
            mask[at, : len(rows[i])] = True
        yield numbers, tokens, mask


def _pool(
    hidden: Float[Array, "B T D"], padding_mask: Bool[Array, "B T"], pooling: Pooling
) -> Float[Array, "B D"]:
    if pooling == "first":
        return hidden[:, 0]
    counts = padding_mask.sum(1)
    if pooling == "last":
        return jnp.take_along_axis(hidden, (counts - 1)[:, None, None], 1)[:, 0]
    return jnp.where(padding_mask[..., None], hidden, 0).sum(1) / counts[:, None]
