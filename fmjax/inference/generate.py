"""Text generation: continuing prompts, encoder-decoder outputs, captioning images."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from fmjax.data.text.pairs import shortened
from fmjax.errors import UserError, explained_out_of_memory
from fmjax.inference.beam_search import Hypothesis, beam_search_tokens
from fmjax.inference.decoder import SourceDecoder, decoder_of
from fmjax.inference.in_batch import Images, in_batch, settings_of, text_after
from fmjax.inference.prompts import encode
from fmjax.inference.run import LESS_MEMORY, Run
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import ScoredTokens, generate_tokens

# Default of max_tokens, if so many fit the model.
_TOKENS = 100
_LESS_MEMORY = f"{LESS_MEMORY} A smaller max_tokens and fewer beams help too."


class ScoredText(NamedTuple):
    """A text found by beam search.

    Attributes:
      text: the text without its prompt.
      score: its log-probability divided by the length penalty.
    """

    text: str
    score: float


class ScoredSample(NamedTuple):
    """A generated text with the log-probabilities of its tokens.

    Attributes:
      text: the text without its prompt.
      tokens: its ids, with EOS if it ended.
      logprobs: log-probability of each id, see
        `fmjax.inference.token_loop.ScoredTokens`.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]


@explained_out_of_memory(_LESS_MEMORY)
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
    """Generates text for prompts, all in one batch.

    A decoder-only model continues the prompts; an encoder-decoder encodes them.
    Arguments that are None, the ids that end a text, and constraints are taken from
    `experiment.generation`, which an import fills from generation_config.json.

    Args:
      run: a run, from `fmjax.load`.
      prompts: texts. For a decoder-only model or a captioner each is the start of a
        document or caption, for an encoder-decoder the whole input.
      images: for models that read images, one for each prompt, from `run.preprocess`.
      max_tokens: maximum number of new tokens; EOS may end a text earlier. The default
        is 100, or as many as fit after the longest prompt; then stderr gets a note.
      temperature: see `Sampling`; default 1.
      top_k: see `Sampling`; default None.
      top_p: see `Sampling`; default None.
      seed: random seed from 0 to 2**32 - 1. A row depends only on the seed, its index
        in `prompts` and the position, not on the other rows.
      beams: number of beams, for beam search instead of sampling, see `beam_search`.
      length_penalty: length penalty of beam search, see `beam_search`.
      logprobs: whether to return log-probabilities of tokens; not with `beams`.

    Returns:
      The generated texts without the prompts; with `logprobs`, a `ScoredSample` each.

    Raises:
      UserError: the run has no tokenizer or no decoder; a prompt is empty and the
        tokenizer has no BOS or EOS, or a prompt is too long; the images do not fit the
        prompts or the model; a number is out of range; arguments exclude each other; or
        the devices have too little memory.
    """
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in given.items() if value is not None}
    if beams is not None and given:
        name, value = next(iter(given.items()))
        raise UserError(
            f"{name} = {value} has no effect with beams = {beams}, since beam search "
            "does not sample; expected only one of the two."
        )
    if beams is not None and logprobs:
        raise UserError(
            f"logprobs = True is not supported with beams = {beams}; expected only one "
            "of the two. fmjax.inference.beam_search returns the score of each text."
        )
    settings = settings_of(run)
    if settings.num_beams > 1 and not given and not logprobs:
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
        raise UserError(
            f"length_penalty = {length_penalty} has an effect only with beams; "
            "expected beams, or no length_penalty."
        )
    ids = _encoded(run, prompts)
    if max_tokens is None:
        max_tokens = _default_max_tokens(run, ids)
    names = ("temperature", "top_k", "top_p")
    defaults = {name: getattr(settings, name) for name in names}
    defaults = {name: value for name, value in defaults.items() if value is not None}

    def draw(filled: list[list[int]], **options) -> list[ScoredTokens]:
        return generate_tokens(
            run.model,
            run.params,
            filled,
            max_tokens=max_tokens,
            sampling=Sampling(**defaults | given),
            seed=seed,
            rows=[*range(len(ids)), *[0] * (len(filled) - len(ids))],
            logprobs=logprobs,
            **options,
        )

    drawn = in_batch(run, ids, images, draw)
    if not logprobs:
        return [text_after(run, *pair) for pair in zip(ids, drawn)]
    return [
        ScoredSample(text_after(run, prompt, found.tokens), *found)
        for prompt, found in zip(ids, drawn)
    ]


@explained_out_of_memory(_LESS_MEMORY)
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
    """Beam search for the texts with the best scores, all prompts in one batch.

    Args:
      run: a run, from `fmjax.load`.
      prompts: texts, as in `generate`.
      images: images, as in `generate`.
      beams: number of beams, see `beam_search_tokens`.
      length_penalty: alpha of the penalty of Wu et al. 2016, see
        `fmjax.inference.beam_search.penalty`. If None, 0; or, if
        `experiment.generation` sets a number of beams, its length_penalty and
        early_stopping, as in transformers.
      n_best: number of texts for each prompt, at most `beams`.
      max_tokens: maximum number of new tokens, as in `generate`.
      longest_prompt: number of tokens to which longer prompts are truncated, keeping
        EOS; None for no limit.

    Returns:
      For each prompt `n_best` texts, best first.

    Raises:
      UserError: as in `generate`.
    """
    ids = _encoded(run, prompts)
    if longest_prompt is not None:
        end = run.tokenizer.eos_id
        ids = [shortened(prompt, longest_prompt, end) for prompt in ids]
    if max_tokens is None:
        max_tokens = _default_max_tokens(run, ids)
    settings = settings_of(run)
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
        [ScoredText(text_after(run, prompt, h.tokens), h.score) for h in found]
        for prompt, found in zip(ids, in_batch(run, ids, images, search))
    ]


def with_prompt(run: Run, prompt: str, text: str) -> str:
    """A generated text for display: after its prompt, except for encoder-decoders."""
    answers = isinstance(decoder_of(run.model), SourceDecoder)
    return text if answers else prompt + text


def _encoded(run: Run, prompts: Sequence[str]) -> list[list[int]]:
    decoder_of(run.model)
    if isinstance(prompts, str):
        raise UserError(f"prompts = {prompts!r}: expected a list of texts.")
    return [encode(run, text) for text in prompts]


def _default_max_tokens(run: Run, ids: list[list[int]]) -> int:
    """The default of max_tokens: that of the generation config or 100, if they fit."""
    decoder, settings = decoder_of(run.model, run.params), settings_of(run)
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
            f"A prompt of {longest} tokens leaves no room for new tokens, since "
            f"{limit}; expected a shorter prompt."
        )
    if room < wanted:
        print(
            f"max_tokens = {room}: no more tokens fit after a prompt of {longest} "
            f"tokens, since {limit}.",
            file=sys.stderr,
        )
    return min(wanted, room)
