"""What a trained run writes: behind a prompt, in answer to it, or of an image."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fmjax.data.text.pairs import shortened
from fmjax.errors import UserError
from fmjax.inference.beam_search import Hypothesis, beam_search_tokens
from fmjax.inference.decoder import SourceDecoder, decoder_of
from fmjax.inference.inputs import inputs_of
from fmjax.inference.load import Run
from fmjax.inference.prompts import encode
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens

Images = Float[np.ndarray, "B height width C"]
# Written for a prompt where nobody says how many, and as many fit.
_TOKENS = 100


class ScoredText(NamedTuple):
    """A text that beam search found.

    Attributes:
      text: without its prompt.
      score: its log-probability over the length penalty.
    """

    text: str
    score: float


def generate(
    run: Run,
    prompts: Sequence[str],
    *,
    images: Images | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    beams: int | None = None,
    length_penalty: float | None = None,
) -> list[str]:
    """Continues texts, or answers them with an encoder-decoder, all in one batch.

    Args:
      run: what `fmjax.load` gave.
      prompts: texts; each is read as the beginning of a document or a caption, or by an
        encoder as the whole of one.
      images: one a prompt, for a model that sees them, as `run.preprocess` gives them.
      max_tokens: the most tokens written for a prompt; the end of a document stops it
        earlier. If not given 100, or as many as fit behind the longest prompt.
      temperature: see `Sampling`; 1 if not given.
      top_k: see `Sampling`.
      top_p: see `Sampling`.
      seed: a row draws by the seed, its place in `prompts` and its position alone.
      beams: nothing is drawn, but the likeliest text looked for, see `beam_search`.
      length_penalty: of the beam search, see `fmjax.inference.beam_search.penalty`,
        which is not that of transformers; 0 if not given.

    Returns:
      What was written, without the prompts.

    Raises:
      UserError: for a run without a tokenizer or with a model that only reads, an empty
        prompt where the tokenizer has no id to begin with, images that do not go with
        the prompts or the model, numbers out of range, or options that do not go
        together.
    """
    if beams is not None:
        drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        for name, value in drawing.items():
            if value is not None:
                raise UserError(
                    f"{name} = {value}: nothing is drawn with beams = {beams}; "
                    "expected one of the two."
                )
        found = beam_search(
            run,
            prompts,
            images=images,
            beams=beams,
            length_penalty=length_penalty or 0.0,
            max_tokens=max_tokens,
        )
        return [best.text for best, *_ in found]
    if length_penalty is not None:
        raise UserError(f"length_penalty = {length_penalty}: expected beams with it.")
    ids = _encoded(run, prompts)
    max_tokens = _fitting(run, ids) if max_tokens is None else max_tokens

    def draw(filled: list[list[int]], **options) -> list[list[int]]:
        return generate_tokens(
            run.model,
            run.params,
            filled,
            max_tokens=max_tokens,
            sampling=Sampling(
                1.0 if temperature is None else temperature, top_k, top_p
            ),
            seed=seed,
            rows=[*range(len(ids)), *[0] * (len(filled) - len(ids))],
            **options,
        )

    return [_text(run, *pair) for pair in zip(ids, _in_batch(run, ids, images, draw))]


def beam_search(
    run: Run,
    prompts: Sequence[str],
    *,
    images: Images | None = None,
    beams: int = 4,
    length_penalty: float = 0.0,
    n_best: int = 1,
    max_tokens: int | None = None,
    longest_prompt: int | None = None,
) -> list[list[ScoredText]]:
    """Looks for the texts of the best score, for all prompts in one batch.

    Args:
      run: as in `generate`.
      prompts: likewise.
      images: likewise.
      beams: see `beam_search_tokens`.
      length_penalty: see `fmjax.inference.beam_search.penalty`.
      n_best: texts for each prompt, at most `beams`.
      max_tokens: as in `generate`.
      longest_prompt: tokens that are read of a longer one, its EOS the last of them;
        all of them if not given.

    Returns:
      For each prompt n_best texts, the best first.

    Raises:
      UserError: as `generate`.
    """
    ids = _encoded(run, prompts)
    if longest_prompt is not None:
        end = run.tokenizer.eos_id
        ids = [shortened(prompt, longest_prompt, end) for prompt in ids]
    max_tokens = _fitting(run, ids) if max_tokens is None else max_tokens

    def search(filled: list[list[int]], **options) -> list[list[Hypothesis]]:
        return beam_search_tokens(
            run.model,
            run.params,
            filled,
            max_tokens=max_tokens,
            beams=beams,
            length_penalty=length_penalty,
            n_best=n_best,
            **options,
        )

    return [
        [ScoredText(_text(run, prompt, h.tokens), h.score) for h in found]
        for prompt, found in zip(ids, _in_batch(run, ids, images, search))
    ]


def with_prompt(run: Run, prompt: str, text: str) -> str:
    """What a person reads: a continuation behind its prompt, an answer alone."""
    answers = isinstance(decoder_of(run.model), SourceDecoder)
    return text if answers else prompt + text


def _encoded(run: Run, prompts: Sequence[str]) -> list[list[int]]:
    decoder_of(run.model)
    if isinstance(prompts, str):
        raise UserError(f"prompts = {prompts!r}: expected a list of texts.")
    return [encode(run, text) for text in prompts]


def _fitting(run: Run, ids: list[list[int]]) -> int:
    """100 tokens, or as many as fit behind the longest prompt."""
    room = decoder_of(run.model).room(max(map(len, ids), default=0))
    # A prompt that leaves no room is refused further on, by its length.
    return max(1, min(_TOKENS, room))


def _in_batch(
    run: Run, ids: list[list[int]], images: Images | None, write: Callable
) -> list:
    """What `write` gives for ids, on the run's mesh and by its tokenizer."""
    if not ids:
        return []
    tokenizer = run.tokenizer
    # Copies of the first row fill the last shard, and end when it does.
    more = -len(ids) % run.row_multiple
    filled = ids + ids[:1] * more
    if images is not None:
        images = inputs_of(run.model, {"images": images})["images"]
        images = np.concatenate([images, *[images[:1]] * more])
    padding = tokenizer.pad_id
    with run.on_mesh():
        return write(
            filled,
            images=images,
            eos_id=tokenizer.eos_id,
            padding_id=None if padding == tokenizer.eos_id else padding,
            vocab_size=tokenizer.vocab_size,
        )


def _text(run: Run, prompt: list[int], new: list[int]) -> str:
    """The text of `new`.

    Behind a prompt it is decoded with it, as its spelling may depend on it:
    SentencePiece, for one, drops a space in front of the first piece it decodes.
    """
    tokenizer = run.tokenizer
    if new and new[-1] == tokenizer.eos_id:
        new = new[:-1]
    if isinstance(decoder_of(run.model), SourceDecoder):
        # Marian's languages have vocabularies of their own.
        return getattr(tokenizer, "target", tokenizer).decode(new)
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + new)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)
