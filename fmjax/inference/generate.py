"""Text generation: continuations of prompts, answers to them, captions of images."""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fmjax.data.text.pairs import shortened
from fmjax.data.tokenizers.tokenizers import TwoVocabularies
from fmjax.errors import UserError
from fmjax.inference.beam_search import Hypothesis, beam_search_tokens
from fmjax.inference.decoder import SourceDecoder, decoder_of
from fmjax.inference.inputs import inputs_of
from fmjax.inference.load import Run
from fmjax.inference.prompts import encode
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import ScoredTokens, generate_tokens
from fmjax.models.generation import Generation

Images = Float[np.ndarray, "B height width C"]
# Tokens generated for a prompt where nobody says how many, if as many fit.
_TOKENS = 100


class ScoredText(NamedTuple):
    """A text that beam search found.

    Attributes:
      text: without its prompt.
      score: its log-probability over the length penalty.
    """

    text: str
    score: float


class ScoredSample(NamedTuple):
    """A text that was generated, with the log-probability of each of its tokens.

    Attributes:
      text: without its prompt.
      tokens: its ids, the EOS that ended it included.
      logprobs: of each id, see `fmjax.inference.token_loop.ScoredTokens`.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]


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
    logprobs: bool = False,
) -> list[str] | list[ScoredSample]:
    """Continues texts, or answers them with an encoder-decoder, all in one batch.

    What is not given is taken from `experiment.generation`, which an import fills from
    the model's generation_config.json; so are the ids that end a text, and constraints.

    Args:
      run: what `fmjax.load` gave.
      prompts: texts; each is read as the beginning of a document or a caption, or by an
        encoder as the whole of one.
      images: one a prompt, for a model that reads them, as `run.preprocess` gives them.
      max_tokens: the most tokens generated for a prompt; the end of a document stops it
        earlier. Else 100, or as many as fit behind the longest prompt, which stderr is
        told where they are fewer.
      temperature: see `Sampling`; else 1.
      top_k: see `Sampling`.
      top_p: see `Sampling`.
      seed: from 0 to 2**32 - 1; a row draws by the seed, its place in `prompts` and its
        position alone.
      beams: beam search instead of sampling, see `beam_search`.
      length_penalty: of beam search, see `beam_search`.
      logprobs: whether to return the log-probabilities of tokens; not with beams.

    Returns:
      The generated texts, without the prompts; `ScoredSample` with `logprobs`.

    Raises:
      UserError: for a run without a tokenizer or with an encoder alone, an empty prompt
        where the tokenizer has no id to begin with, a prompt that leaves no room,
        images that do not go with the prompts or the model, numbers out of range, or
        options that do not go together.
    """
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawing = {name: value for name, value in drawing.items() if value is not None}
    if beams is not None and drawing:
        name, value = next(iter(drawing.items()))
        raise UserError(
            f"{name} = {value}: nothing is drawn with beams = {beams}; expected one of "
            "the two."
        )
    if beams is not None and logprobs:
        raise UserError(
            f"logprobs: beams = {beams} are scored as a whole; expected one of the two."
        )
    settings = _settings(run)
    if settings.num_beams > 1 and not drawing and not logprobs:
        beams = beams or settings.num_beams
    if beams is not None:
        found = beam_search(
            run,
            prompts,
            images=images,
            beams=beams,
            length_penalty=length_penalty,
            max_tokens=max_tokens,
        )
        return [best.text for best, *_ in found]
    if length_penalty is not None:
        raise UserError(f"length_penalty = {length_penalty}: expected beams with it.")
    ids = _encoded(run, prompts)
    if max_tokens is None:
        max_tokens = _fitting(run, ids)
    defaults = {"temperature": settings.temperature, "top_k": settings.top_k}
    defaults |= {"top_p": settings.top_p}
    told = {name: value for name, value in defaults.items() if value is not None}

    def draw(filled: list[list[int]], **options) -> list[ScoredTokens]:
        return generate_tokens(
            run.model,
            run.params,
            filled,
            max_tokens=max_tokens,
            sampling=Sampling(**told | drawing),
            seed=seed,
            rows=[*range(len(ids)), *[0] * (len(filled) - len(ids))],
            logprobs=logprobs,
            **options,
        )

    drawn = _in_batch(run, ids, images, draw)
    if not logprobs:
        return [_text(run, *pair) for pair in zip(ids, drawn)]
    return [
        ScoredSample(_text(run, prompt, found.tokens), *found)
        for prompt, found in zip(ids, drawn)
    ]


def beam_search(
    run: Run,
    prompts: Sequence[str],
    *,
    images: Images | None = None,
    beams: int = 4,
    length_penalty: float | None = None,
    n_best: int = 1,
    max_tokens: int | None = None,
    longest_prompt: int | None = None,
) -> list[list[ScoredText]]:
    """Beam search: looks for the texts of the best score, all prompts in one batch.

    Args:
      run: as in `generate`.
      prompts: likewise.
      images: likewise.
      beams: see `beam_search_tokens`.
      length_penalty: that of Wu et al. 2016, see `fmjax.inference.beam_search.penalty`.
        If not given 0, or where `experiment.generation` names a number of beams, its
        own length_penalty and early_stopping, as transformers has them.
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
    if max_tokens is None:
        max_tokens = _fitting(run, ids)
    settings = _settings(run)
    if length_penalty is None and settings.num_beams > 1:
        scoring = {
            "length_penalty": settings.length_penalty,
            "penalty_form": "power",
            "early_stopping": settings.early_stopping,
        }
    else:
        scoring = {"length_penalty": length_penalty or 0.0}

    def search(filled: list[list[int]], **options) -> list[list[Hypothesis]]:
        return beam_search_tokens(
            run.model,
            run.params,
            filled,
            max_tokens=max_tokens,
            beams=beams,
            n_best=n_best,
            **scoring,
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


def _settings(run: Run) -> Generation:
    return run.config.generation or Generation()


def _ends(run: Run) -> tuple[int, ...]:
    """The ids that end a text: those of experiment.generation, or the tokenizer's."""
    eos_id = run.tokenizer.eos_id
    return _settings(run).eos_token_id or (() if eos_id is None else (eos_id,))


def _fitting(run: Run, ids: list[list[int]]) -> int:
    """As many tokens as the settings say, or 100; or as many as fit the model."""
    decoder, settings = decoder_of(run.model), _settings(run)
    longest = max(map(len, ids), default=0)
    limit = f"{run.model.gin_name}.max_length = {run.model.max_length}"
    room = decoder.room(longest)
    wanted = settings.max_new_tokens or _TOKENS
    if settings.max_length is not None and settings.max_new_tokens is None:
        read = 1 if isinstance(decoder, SourceDecoder) else longest
        wanted = settings.max_length - read
        if wanted < 1:
            limit, room = f"generation.max_length = {settings.max_length}", wanted
    if room < 1:
        raise UserError(
            f"A prompt of {longest} tokens leaves none to generate, for {limit}; "
            "expected a shorter prompt."
        )
    if room < wanted:
        print(
            f"max_tokens = {room}: no more fit behind a prompt of {longest} tokens, "
            f"for {limit}.",
            file=sys.stderr,
        )
    return min(wanted, room)


def _in_batch(
    run: Run, ids: list[list[int]], images: Images | None, write: Callable
) -> list:
    """Calls `write` with a full batch of ids on the run's mesh; one result a prompt."""
    if not ids:
        return []
    tokenizer = run.tokenizer
    # Copies of the first row fill the last shard, and end when it does.
    more = -len(ids) % run.row_multiple
    filled = ids + ids[:1] * more
    if images is not None:
        images = inputs_of(run.model, {"images": images})["images"]
        images = np.concatenate([images, *[images[:1]] * more])
    ends, padding = _ends(run), tokenizer.pad_id
    with run.on_mesh():
        return write(
            filled,
            images=images,
            eos_id=ends,
            padding_id=None if padding in ends else padding,
            vocab_size=tokenizer.vocab_size,
            generation=run.config.generation,
        )


def _text(run: Run, prompt: list[int], new: list[int]) -> str:
    """The text of `new`.

    Behind a prompt it is decoded with it, as its spelling may depend on it:
    SentencePiece, for one, drops a space in front of the first piece it decodes.
    """
    tokenizer = run.tokenizer
    if new and new[-1] in _ends(run):
        new = new[:-1]
    if isinstance(decoder_of(run.model), SourceDecoder):
        # Marian's languages have vocabularies of their own.
        if isinstance(tokenizer, TwoVocabularies):
            tokenizer = tokenizer.target
        return tokenizer.decode(new)
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + new)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)
