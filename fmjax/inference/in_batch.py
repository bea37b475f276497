"""Generation for prompts of a run in one padded batch, and the texts that come out."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from fmjax.data.tokenizers.tokenizers import TwoVocabularies
from fmjax.inference.decoder import SourceDecoder, decoder_of
from fmjax.inference.inputs import inputs_of
from fmjax.inference.run import Run
from fmjax.models.generation import Generation

Images = Float[np.ndarray, "B height width C"]


def settings_of(run: Run) -> Generation:
    """The generation settings of a run's config, or the defaults."""
    return run.config.generation or Generation()


def end_ids(run: Run) -> tuple[int, ...]:
    """The ids that end a text: those of experiment.generation, or the tokenizer's."""
    eos_id = run.tokenizer.eos_id
    return settings_of(run).eos_token_id or (() if eos_id is None else (eos_id,))


def in_batch(
    run: Run,
    ids: list[list[int]],
    images: Images | None,
    write: Callable,
    ends: Sequence[int] | None = None,
) -> list:
    """Calls `write` with a padded batch on the run's mesh.

    Args:
      run: the run.
      ids: ids of each prompt.
      images: one for each prompt, or None.
      write: a function of the batch and options that returns a result for each row.
      ends: ids that end a text; `end_ids(run)` if None.

    Returns:
      `write`'s results, of which only the first len(ids) belong to prompts.
    """
    if not ids:
        return []
    tokenizer = run.tokenizer
    # Copies of the first row fill the last shard; they end at the same time.
    more = -len(ids) % run.row_multiple
    filled = ids + ids[:1] * more
    if images is not None:
        images = inputs_of(run.model, {"images": images})["images"]
        images = np.concatenate([images, *[images[:1]] * more])
    ends, padding = end_ids(run) if ends is None else ends, tokenizer.pad_id
    with run.on_mesh():
        return write(
            filled,
            images=images,
            eos_id=ends,
            padding_id=None if padding in ends else padding,
            vocab_size=tokenizer.vocab_size,
            generation=run.config.generation,
        )


def text_after(
    run: Run, prompt: list[int], new: list[int], ends: Sequence[int] | None = None
) -> str:
    """The text of new ids after a prompt.

    They are decoded with the prompt, since a text may depend on what is before it: for
    example, SentencePiece removes the space before the first piece.

    Args:
      run: the run.
      prompt: ids of the prompt.
      new: the new ids.
      ends: ids that end a text, and are no part of it; `end_ids(run)` if None.
    """
    tokenizer = run.tokenizer
    if new and new[-1] in (end_ids(run) if ends is None else ends):
        new = new[:-1]
    if isinstance(decoder_of(run.model), SourceDecoder):
        # Marian has a tokenizer for each language.
        if isinstance(tokenizer, TwoVocabularies):
            tokenizer = tokenizer.target
        return tokenizer.decode(new)
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + new)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)
