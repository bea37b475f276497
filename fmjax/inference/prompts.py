"""Prompts: from texts to ids as the model read them in training, padded for a batch."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import start_id
from fmjax.errors import UserError
from fmjax.inference.decoder import (
    Decoder,
    ImageDecoder,
    Prompts,
    SourceDecoder,
    decoder_of,
)
from fmjax.inference.load import Run
from fmjax.models.generation import Generation

# Prompts are padded to a power of two of at least this, so that few shapes compile.
_SHORTEST_BUCKET = 16


def encode(run: Run, text: str) -> list[int]:
    """Ids of a prompt: the beginning of a text, or all that an encoder reads.

    Raises:
      UserError: for a run without a tokenizer, a prompt that is no Unicode text (on the
        command line: no UTF-8), an empty one where the tokenizer has no id to begin
        with, or a model without a decoder.
    """
    tokenizer = run.tokenizer
    if tokenizer is None:
        raise UserError(
            "This run has no tokenizer, so no text goes in or out; "
            "fmjax.inference.token_loop.generate_tokens takes ids."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # As Python has bytes of the command line that are no UTF-8.
        raise UserError(
            f"prompt {text!r}: no UTF-8 at character {error.start + 1}; expected text "
            "in UTF-8."
        ) from None
    # What a model that was imported read is not known but from its tokenizer.
    imported = run.config.data is None
    ids, decoder = tokenizer.encode(text), decoder_of(run.model)
    if isinstance(decoder, SourceDecoder):
        if imported and isinstance(tokenizer, HuggingFaceTokenizer):
            return tokenizer.wrap(ids)[0]
        return ids if tokenizer.eos_id is None else [*ids, tokenizer.eos_id]
    if isinstance(decoder, ImageDecoder):
        first = run.model.start_id
        first = tokenizer.bos_id if first is None else first
    else:
        first = tokenizer.bos_id if imported and text else start_id(tokenizer)
    ids = ([] if first is None else [first]) + ids
    if not ids:
        raise UserError(
            "An empty prompt needs a tokenizer with an id that begins or ends a "
            "document, which this run's does not have. Expected some text."
        )
    return ids


def pad(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    images: Float[np.ndarray, "B height width C"] | None = None,
) -> Prompts:
    """Joins ids of one or more prompts of different lengths.

    Raises:
      UserError: where a prompt is empty or has an id that the model does not,
        max_tokens is below 1 or too many for the model, or there are not as many images
        as prompts for a model that sees them, and none for another.
    """
    model = decoder.model
    expected = len(prompts) if decoder.reads_images else 0
    if expected != (found := 0 if images is None else len(images)):
        raise UserError(
            f"{found} images for {len(prompts)} prompts; @{model.gin_name}() needs "
            f"{expected}."
        )
    lengths = [len(prompt) for prompt in prompts]
    if max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens}: expected at least 1.")
    if min(lengths) < 1:
        raise UserError(f"prompt {lengths.index(0)} has no tokens; expected one.")
    decoder.check(max(lengths), max_tokens)
    bucket = max(_SHORTEST_BUCKET, 1 << (max(lengths) - 1).bit_length())
    tokens = np.zeros((len(prompts), min(bucket, model.max_length)), np.int32)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt
    if tokens.min() < 0 or tokens.max() >= model.vocab_size:
        raise UserError(
            f"prompts hold ids from {tokens.min()} to {tokens.max()}; expected 0 to "
            f"{model.gin_name}.vocab_size - 1 = {model.vocab_size - 1}."
        )
    return Prompts(tokens, np.array(lengths, np.int32), images)


def eos_array(
    eos_id: int | Sequence[int] | None, generation: Generation
) -> Int[np.ndarray, " E"]:
    """int32 ids that end a text; -1, which no id is, where nothing does."""
    if eos_id is None:
        eos_id = generation.eos_token_id
    ids = [eos_id] if isinstance(eos_id, int | np.integer) else list(eos_id)
    return np.array(ids or [-1], np.int32)
