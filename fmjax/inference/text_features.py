"""Vectors of texts: a language model's hidden states, pooled over the tokens."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.specials import special_id
from fmjax.errors import UserError
from fmjax.inference.prompts import with_specials
from fmjax.models.contracts import (
    Generates,
    GeneratesFromImages,
    GeneratesFromText,
    PredictsTokens,
)
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.say_once import say_once

if TYPE_CHECKING:
    from fmjax.inference.load import Run

Pooling = Literal["mean", "first", "last"]
# Rows are padded to a power of two, at least this, so that few shapes are compiled.
_MIN_LENGTH = 16


def embed_texts(
    run: "Run", texts: Sequence[str], pooling: Pooling, batch_size: int
) -> Float[np.ndarray, "N D"]:
    """See `fmjax.inference.load.Run.embed`."""
    model = run.model
    if not isinstance(model, PredictsTokens) or isinstance(model, GeneratesFromImages):
        raise UserError(
            f"@{model.gin_name}() does not read texts alone; expected a language model."
        )
    if run.tokenizer is None:
        raise UserError("this run has no tokenizer, so it cannot read text.")
    if pooling not in ("mean", "first", "last"):
        raise UserError(f"pooling = {pooling!r}: expected mean, first or last.")
    if not texts:
        raise UserError("there are no texts; expected at least one.")
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: expected at least 1.")
    rows = [_text_ids(run, text) for text in texts]
    empty = next((i for i, (ids, _) in enumerate(rows) if not ids), None)
    if empty is not None:
        raise UserError(f"text {empty} is empty; expected at least one token.")
    if cut := sum(is_cut for _, is_cut in rows):
        say_once(
            f"{cut:,} of {len(rows):,} texts have more than "
            f"{model.gin_name}.max_length = {model.max_length} tokens; the rest is "
            "not read."
        )
    longest = model.max_length
    method = model.encode if isinstance(model, GeneratesFromText) else model.hidden

    @jax.jit
    def vectors(variables, tokens, padding_mask):
        text = TextInputs(tokens, padding_mask=padding_mask)
        hidden = model.apply(variables, text, method=method)["hidden"]
        return _pool(hidden.astype(jnp.float32), padding_mask, pooling)

    variables = {"params": run.params, **run.extra}
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    with run.on_mesh():
        size = batch_size + -batch_size % run.row_multiple
        for numbers, tokens, mask in _batches([ids for ids, _ in rows], size, longest):
            pooled = np.asarray(vectors(variables, tokens, mask))
            for number, vector in zip(numbers, pooled):
                found[number] = vector
    return np.stack(found)


def _text_ids(run: "Run", text: str) -> tuple[list[int], bool]:
    """Ids of a text, with special tokens as the model knows it, and if it was cut."""
    ids = run.tokenizer.encode(text)
    excess = max(len(_with_specials(run, ids)) - run.model.max_length, 0)
    return _with_specials(run, ids[: len(ids) - excess]), excess > 0


def _with_specials(run: "Run", ids: list[int]) -> list[int]:
    tokenizer = run.tokenizer
    if run.config.data is None and isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.wrap(ids)[0]
    if isinstance(run.model, Generates):
        return with_specials(run, ids)
    first, last = (special_id(tokenizer, name, "an encoder") for name in ("cls", "sep"))
    return [first, *ids, last]


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
