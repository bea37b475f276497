"""Prompts: encoding texts as in training, and padding them to a batch."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from fmjax.errors import UserError
from fmjax.inference.decoder import (
    Decoder,
    Prompts,
    decoder_of,
)
from fmjax.inference.run import Run
from fmjax.inference.special_tokens import with_specials
from fmjax.models.generation import Generation

# Prompts are padded to a power of two, at least this, so that few shapes are compiled.
_MIN_BUCKET = 16


def encode(run: Run, text: str) -> list[int]:
    """Ids of a prompt, with the special tokens of training.

    Raises:
      UserError: the run has no tokenizer, the model has no decoder, the prompt is not
        valid Unicode (on the command line: UTF-8), or it is empty and the tokenizer has
        no BOS or EOS.
    """
    tokenizer = run.tokenizer
    if tokenizer is None:
        raise UserError(
            "This run has no tokenizer, so it cannot read or generate text; "
            "fmjax.inference.token_loop.generate_tokens generates ids."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Python turns invalid bytes of the command line into surrogates.
        raise UserError(
            f"prompt {text!r} is not UTF-8 at character {error.start + 1}; expected "
            "text in UTF-8."
        ) from None
    decoder_of(run.model)  # refuses encoders
    ids = tokenizer.encode(text)
    ids = with_specials(run.model, tokenizer, ids, imported=run.config.data is None)
    if not ids:
        raise UserError(
            "The prompt is empty, and the run's tokenizer has no BOS or EOS to start "
            "with; expected some text."
        )
    return ids


def pad(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    images: Float[np.ndarray, "B height width C"] | None = None,
) -> Prompts:
    """Pads the ids of prompts to a batch.

    Args:
      decoder: the decoder.
      prompts: ids of each prompt.
      max_tokens: maximum number of new tokens.
      images: one for each prompt if the model reads images, else None.

    Raises:
      UserError: a prompt is empty or has an id outside the vocabulary, `max_tokens` is
        less than 1 or does not fit the model, or the number of images is wrong.
    """
    model = decoder.model
    expected = len(prompts) if decoder.reads_images else 0
    if expected != (found := 0 if images is None else len(images)):
        raise UserError(
            f"images: {found} images for {len(prompts)} prompts; @{model.gin_name}() "
            f"expects {expected}."
        )
    lengths = [len(prompt) for prompt in prompts]
    if max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens}: expected at least 1.")
    if min(lengths) < 1:
        raise UserError(
            f"prompt {lengths.index(0)} has no tokens; expected at least one."
        )
    decoder.check(max(lengths), max_tokens)
    bucket = max(_MIN_BUCKET, 1 << (max(lengths) - 1).bit_length())
    tokens = np.zeros((len(prompts), min(bucket, decoder.room(0))), np.int32)
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
    """Ids that end a text, int32 [E]; [-1] if there are none."""
    if eos_id is None:
        eos_id = generation.eos_token_id
    ids = [eos_id] if isinstance(eos_id, int | np.integer) else list(eos_id)
    return np.array(ids or [-1], np.int32)
