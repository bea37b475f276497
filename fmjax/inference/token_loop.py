"""Sampling and greedy decoding with a key-value cache, in one compiled loop."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Integer, Key

from fmjax.errors import UserError
from fmjax.inference.constraints import constrain_scores, constrains
from fmjax.inference.decoder import Decoder, Prompts, SourceDecoder, decoder_of
from fmjax.inference.prompts import eos_array, pad
from fmjax.inference.sampling import Sampling, sample
from fmjax.inference.slots import Slots
from fmjax.models.generation import Generation
from fmjax.models.layers.logical_axes import constrain

MAX_SEED = 2**32 - 1


class ScoredTokens(NamedTuple):
    """Generated ids with their log-probabilities.

    Attributes:
      tokens: the ids.
      logprobs: log-probability of each id in nats: the log-softmax of the model's
        logits over the whole vocabulary, before temperature, top-k, top-p and
        constraints.
    """

    tokens: list[int]
    logprobs: list[float]


def generate_tokens(
    model: nn.Module,
    params: dict,
    prompts: Sequence[Sequence[int]],
    *,
    images: Float[np.ndarray, "B height width C"] | None = None,
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    eos_id: int | Sequence[int] | None = None,
    padding_id: int | None = None,
    vocab_size: int | None = None,
    generation: Generation | None = None,
    logprobs: bool = False,
) -> list[list[int]] | list[ScoredTokens]:
    """Generates ids for prompts of different lengths in one batch.

    It is compiled once for each combination of number of rows, length of the longest
    prompt rounded up to a power of two, max_tokens, vocab_size, number of EOS ids and
    constraints.

    Args:
      model: a model with a decoder; an encoder, if it has one, reads the prompts.
      params: its parameters.
      prompts: ids of each prompt, at least one.
      images: normalized images, one for each prompt, for a model that reads images.
      max_tokens: maximum number of new ids.
      sampling: settings of sampling.
      seed: random seed from 0 to 2**32 - 1.
      rows: a number for each row; its samples depend only on this number, the seed and
        the position. The index in the batch if None.
      eos_id: one or several ids that end a row, as its last id; those of `generation`
        if None.
      padding_id: id that is never generated.
      vocab_size: ids from here on are never generated; model.vocab_size if None.
      generation: constraints; its defaults for sampling, beams and lengths are ignored.
      logprobs: whether to return log-probabilities.

    Returns:
      The new ids of each prompt; `ScoredTokens` with `logprobs`.

    Raises:
      UserError: the model has no decoder, prompts and `max_tokens` do not fit
        model.max_length, the images do not fit, or a number is out of range.
    """
    decoder = decoder_of(model, params)
    sampling.check()
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed = {seed}: expected 0 to 2**32 - 1 = {MAX_SEED}.")
    if not prompts:
        return []
    generation = generation or Generation()
    padded = pad(decoder, prompts, max_tokens, images)
    written = _write(
        decoder,
        nn.get_logical_axis_rules(),
        max_tokens,
        min(model.vocab_size, vocab_size or model.vocab_size),
        generation if constrains(generation) else None,
        logprobs,
        params,
        padded,
        np.uint32(seed),
        np.arange(len(prompts)) if rows is None else np.array(rows),
        # An int and a float would be compiled separately.
        dataclasses.replace(sampling, temperature=np.float32(sampling.temperature)),
        eos_array(eos_id, generation),
        np.int32(-1 if padding_id is None else padding_id),
    )
    tokens, counts = np.asarray(written.tokens), np.asarray(written.counts)
    ids = [row[:count].tolist() for row, count in zip(tokens, counts)]
    if not logprobs:
        return ids
    found = np.asarray(written.logprobs)
    return [
        ScoredTokens(row, values[: len(row)].tolist())
        for row, values in zip(ids, found)
    ]


class _Written(NamedTuple):
    tokens: Int[Array, "B N"]  # zeros after the end of each row
    counts: Int[Array, " B"]
    logprobs: Float[Array, "B N"] | None


class LoopState(NamedTuple):
    """The state of a batch between two generated ids.

    Attributes:
      count: number of ids generated so far.
      tokens: the ids, int32 [B, N]; zeros after the end of each row.
      logprobs: their log-probabilities [B, N]; None if they are not wanted.
      counts: number of ids of each row, int32 [B].
      ended: whether each row has ended, bool [B].
      slots: of the decoder.
    """

    count: jax.Array
    tokens: jax.Array
    logprobs: jax.Array | None
    counts: jax.Array
    ended: jax.Array
    slots: Slots


def loop_state(slots: Slots, max_tokens: int, logprobs: bool = False) -> LoopState:
    """The state before the first id is generated."""
    B = len(slots.positions)
    return LoopState(
        count=jnp.int32(0),
        tokens=jnp.zeros((B, max_tokens), jnp.int32),
        logprobs=jnp.zeros((B, max_tokens)) if logprobs else None,
        counts=jnp.zeros(B, jnp.int32),
        ended=jnp.zeros(B, bool),
        slots=slots,
    )


def generate_one(
    decoder: Decoder,
    params: dict,
    state: LoopState,
    prompts: Prompts,
    *,
    vocab_size: int,
    generation: Generation | None,
    keys: Key[Array, " B"],
    sampling: Sampling,
    eos_ids: Int[Array, " E"],
    padding_id: Int[Array, ""],
) -> LoopState:
    """Draws the next id of each row that has not ended, and reads it.

    Args:
      decoder: the decoder.
      params: of the model.
      state: the state.
      prompts: what is before the generated ids, for constraints.
      vocab_size: ids from here on are never generated.
      generation: constraints; None for none.
      keys: of each row; an id depends on it and the position.
      sampling: settings of sampling.
      eos_ids: ids that end a row.
      padding_id: id that is never generated; -1 for none.
    """
    B = len(state.counts)
    logits = decoder.next_logits(params, state.slots)
    allowed = logits[:, :vocab_size]
    allowed = jnp.where(jnp.arange(vocab_size) == padding_id, -jnp.inf, allowed)
    if generation is not None:
        allowed = constrain_scores(
            allowed,
            generation,
            decoder.history(prompts).extended(state.tokens, state.count),
            state.count,
            max_tokens=state.tokens.shape[1],
            eos_ids=eos_ids,
            from_start=isinstance(decoder, SourceDecoder),
        )
    of_position = jax.vmap(jax.random.fold_in)(keys, state.slots.positions)
    drawn = sample(allowed, of_position, sampling)
    drawn = jnp.where(state.ended, 0, drawn)
    found = state.logprobs
    if found is not None:
        of_drawn = jax.nn.log_softmax(logits)[jnp.arange(B), drawn]
        found = found.at[:, state.count].set(of_drawn)
    return LoopState(
        count=state.count + 1,
        tokens=state.tokens.at[:, state.count].set(drawn),
        logprobs=found,
        counts=state.counts + ~state.ended,
        ended=state.ended | jnp.isin(drawn, eos_ids),
        slots=decoder.decode_step(params, drawn, state.slots),
    )


def row_keys(seed: Integer[Array, ""], rows: Int[Array, " B"]) -> Key[Array, " B"]:
    """The random key of each row, from its number and the seed."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


# flax's logical axis rules are global state that jit does not see, so they are a static
# argument.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _write(
    decoder,
    rules,
    max_tokens,
    vocab_size,
    generation,
    logprobs,
    params,
    prompts,
    seed,
    rows,
    sampling,
    eos_ids,
    padding_id,
):
    del rules

    def unfinished(state):
        return (state.count < max_tokens) & ~state.ended.all()

    step = functools.partial(
        generate_one,
        decoder,
        params,
        prompts=prompts,
        vocab_size=vocab_size,
        generation=generation,
        keys=row_keys(seed, rows),
        sampling=sampling,
        eos_ids=eos_ids,
        padding_id=padding_id,
    )
    slots = decoder.prefill(params, prompts, max_tokens)
    start = loop_state(slots, max_tokens, logprobs)
    end = jax.lax.while_loop(unfinished, step, start)
    written = _Written(end.tokens, end.counts, end.logprobs)
    # Replicated, so that every process can read all of it.
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), written)
