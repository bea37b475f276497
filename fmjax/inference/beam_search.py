"""Beam search with a key-value cache: one compiled loop on the device."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.errors import UserError
from fmjax.inference.constraints import History, constrain_scores, constrains
from fmjax.inference.decoder import SourceDecoder, decoder_of
from fmjax.inference.prompts import eos_array, pad
from fmjax.inference.slots import SelfCache, Slots
from fmjax.models.generation import Generation
from fmjax.models.layers.logical_axes import constrain


class Hypothesis(NamedTuple):
    """A hypothesis of beam search.

    Attributes:
      tokens: ids, with EOS at the end unless `max_tokens` was reached.
      score: their log-probability divided by the length penalty.
    """

    tokens: list[int]
    score: float


PenaltyForm = Literal["wu", "power"]


def penalty(
    length: int | Int[Array, "..."],
    alpha: float | Float[Array, ""],
    form: PenaltyForm = "wu",
) -> Float[Array, "..."]:
    """The length penalty, which divides the log-probability of n tokens.

    Args:
      length: n.
      alpha: exponent; 0 gives 1, which favours short texts.
      form: "wu" is ((5 + n) / 6)^alpha (Wu et al. 2016, equation 14; Vaswani et al.
        2017 use alpha = 0.6); "power" is n^alpha, as in transformers.
    """
    n = 1.0 * length if form == "power" else (5.0 + length) / 6.0
    return n ** jnp.float32(alpha)


def beam_search_tokens(
    model: nn.Module,
    params: dict,
    prompts: Sequence[Sequence[int]],
    *,
    images: Float[np.ndarray, "B height width C"] | None = None,
    max_tokens: int,
    beams: int,
    length_penalty: float = 0.0,
    penalty_form: PenaltyForm = "wu",
    early_stopping: bool | Literal["never"] = "never",
    n_best: int = 1,
    eos_id: int | Sequence[int] | None = None,
    padding_id: int | None = None,
    vocab_size: int | None = None,
    generation: Generation | None = None,
) -> list[list[Hypothesis]]:
    """Beam search for the texts with the best scores.

    After every token, the `beams` likeliest unfinished texts are kept, and as many of
    the best finished ones. A text is finished if its EOS was among the `beams`
    likeliest next tokens of all, or if `max_tokens` is reached.

    Args:
      model: a model with a decoder, as in `generate_tokens`.
      params: its parameters.
      prompts: ids of each prompt, at least one.
      images: normalized images, one for each prompt, for a model that reads images.
      max_tokens: maximum number of new tokens.
      beams: K, number of unfinished texts that are kept; 1 is greedy.
      length_penalty: alpha of `penalty`; may be negative only in the form "power".
      penalty_form: see `penalty`.
      early_stopping: when a row is done. "never": no unfinished text can become better
        than the worst finished one that is kept. False: none would be better if it
        ended now. True: also if `beams` texts are finished. The last two are heuristics
        of transformers.
      n_best: number of texts to return, at most `beams`.
      eos_id: one or several ids that end a text; those of `generation` if None.
      padding_id: id that is never generated.
      vocab_size: ids from here on are never generated; model.vocab_size if None.
      generation: constraints; its defaults for sampling, beams and lengths are ignored.

    Returns:
      For each prompt the `n_best` hypotheses, best first; fewer only if there are not
      so many.

    Raises:
      UserError: as in `generate_tokens`.
    """
    decoder = decoder_of(model, params)
    if beams < 1:
        raise UserError(f"beams = {beams}: expected at least 1.")
    if not 1 <= n_best <= beams:
        raise UserError(f"n_best = {n_best}: expected 1 to beams = {beams}.")
    if penalty_form == "wu" and not 0 <= length_penalty < float("inf"):
        raise UserError(f"length_penalty = {length_penalty}: expected 0 or more.")
    if not prompts:
        return []
    generation = generation or Generation()
    padded = pad(decoder, prompts, max_tokens, images)
    found = _search(
        decoder,
        nn.get_logical_axis_rules(),
        max_tokens,
        beams,
        min(model.vocab_size, vocab_size or model.vocab_size),
        penalty_form,
        # With a negative penalty the best possible text is a short one, for which the
        # bound of "never" does not hold.
        False if early_stopping == "never" and length_penalty < 0 else early_stopping,
        generation if constrains(generation) else None,
        generation.renormalize_logits,
        params,
        padded,
        np.float32(length_penalty),
        eos_array(eos_id, generation),
        np.int32(-1 if padding_id is None else padding_id),
    )
    tokens, lengths, scores = (np.asarray(x)[:, :n_best] for x in found)
    return [
        [
            Hypothesis(ids[:length].tolist(), float(score))
            for ids, length, score in zip(*row)
            if score > -np.inf
        ]
        for row in zip(tokens, lengths, scores)
    ]


class _Texts(NamedTuple):
    """Texts of every row, best first; a score of -inf means that there is none."""

    tokens: jax.Array  # [B, K, max_tokens], zeros after their ends
    lengths: jax.Array  # [B, K]
    scores: jax.Array  # [B, K]

    def best(self, count: int) -> tuple["_Texts", jax.Array]:
        """(the `count` best texts, their indices); of equal ones the first."""
        scores, which = jax.lax.top_k(self.scores, count)
        tokens = jnp.take_along_axis(self.tokens, which[..., None], axis=1)
        lengths = jnp.take_along_axis(self.lengths, which, axis=1)
        return _Texts(tokens, lengths, scores), which


class _State(NamedTuple):
    count: jax.Array  # number of ids of every unfinished text
    live: _Texts  # unfinished texts; scores are log-probabilities
    ended: _Texts  # finished texts; scores include the length penalty
    open: jax.Array  # bool [B], whether a row is not done
    slots: Slots  # B · K


# See `token_loop` for the rules.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5, 6, 7, 8))
def _search(
    decoder,
    rules,
    max_tokens,
    K,
    vocab_size,
    form,
    early_stopping,
    generation,
    renormalize,
    params,
    prompts,
    alpha,
    eos_ids,
    padding_id,
):
    del rules
    B, ids = len(prompts.lengths), jnp.arange(vocab_size)
    begun = History(*(jnp.repeat(x, K, axis=0) for x in decoder.history(prompts)))

    def next_log_probs(state):
        logits = decoder.next_logits(params, state.slots)
        scores = jax.nn.log_softmax(logits)[:, :vocab_size]
        scores = jnp.where(ids == padding_id, -jnp.inf, scores)
        if generation is not None:
            written = state.live.tokens.reshape(B * K, -1)
            scores = constrain_scores(
                scores,
                generation,
                begun.extended(written, state.count),
                state.count,
                max_tokens=max_tokens,
                eos_ids=eos_ids,
                from_start=isinstance(decoder, SourceDecoder),
            )
        return jax.nn.log_softmax(scores) if renormalize else scores

    def still_open(live, ended, count):
        # Log-probabilities fall with every token, and the penalty favours the longest.
        length = max_tokens if early_stopping == "never" else count
        within_reach = live.scores.max(1) / penalty(length, alpha, form)
        result = within_reach > ended.scores.min(1)
        if early_stopping is True:
            result &= (ended.scores == -jnp.inf).any(1)
        return result

    def unfinished(state):
        return (state.count < max_tokens) & state.open.any()

    def step(state):
        scores = next_log_probs(state)
        scores = state.live.scores[..., None] + scores.reshape(B, K, -1)
        # E ids are EOS, so (1 + E) K candidates have at least K others. The best of
        # each text are taken first: on a CPU, XLA would sort all K · V candidates.
        candidates = (1 + len(eos_ids)) * K
        scores, drawn = jax.lax.top_k(scores, min(candidates, vocab_size))
        each = scores.shape[-1]
        scores, which = jax.lax.top_k(scores.reshape(B, -1), min(candidates, each * K))
        parents = which // each
        drawn = jnp.take_along_axis(drawn.reshape(B, -1), which, axis=1)
        tokens = jnp.take_along_axis(state.live.tokens, parents[..., None], axis=1)
        tokens = tokens.at[:, :, state.count].set(drawn)
        count = state.count + 1
        every = _Texts(tokens, jnp.full(drawn.shape, count), scores)
        ends = jnp.isin(drawn, eos_ids)

        likely = jax.tree.map(lambda x: x[:, :K], every)
        kept = jnp.where(
            (ends[:, :K] | (count == max_tokens)) & state.open[:, None],
            likely.scores / penalty(count, alpha, form),
            -jnp.inf,
        )
        likely = likely._replace(scores=kept)
        # Earlier texts come first, so they win against equal scores.
        joined = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), state.ended, likely
        )
        ended, _ = _Texts(*joined).best(K)

        going_on = every._replace(scores=jnp.where(ends, -jnp.inf, every.scores))
        live, which = going_on.best(K)
        parents = jnp.take_along_axis(parents, which, axis=1)
        cache = _reorder(state.slots.cache, parents)
        slots = decoder.decode_step(
            params,
            live.tokens[:, :, state.count].reshape(-1),
            dataclasses.replace(state.slots, cache=cache),
        )
        is_open = state.open & still_open(live, ended, count)
        return _State(count, live, ended, is_open, slots)

    nothing = _Texts(
        jnp.zeros((B, K, max_tokens), jnp.int32),
        jnp.zeros((B, K), jnp.int32),
        jnp.full((B, K), -jnp.inf),
    )
    slots = decoder.prefill(params, prompts, max_tokens)
    start = _State(
        count=jnp.int32(0),
        # One empty text: K of them would stay equal.
        live=nothing._replace(scores=nothing.scores.at[:, 0].set(0.0)),
        ended=nothing,
        open=jnp.ones(B, bool),
        # Beams share the cross-attention cache.
        slots=dataclasses.replace(
            slots,
            hidden=jnp.repeat(slots.hidden, K, axis=0),
            positions=jnp.repeat(slots.positions, K),
            cache=jax.tree.map(lambda x: jnp.repeat(x, K, axis=1), slots.cache),
        ),
    )
    ended = jax.lax.while_loop(unfinished, step, start).ended
    # Replicated, so that every process can read all of it.
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), ended)


def _reorder(own: SelfCache, parents: Int[Array, "B K"]) -> SelfCache:
    """Gives every beam the cache of its parent."""
    B, K = parents.shape

    # Row by row, so that rows stay on their devices.
    of_row = jax.vmap(lambda beams, p: beams[p])
    of_layers = jax.vmap(of_row, (0, None))

    def reorder(x):
        rows = x.reshape(len(x), B, K, *x.shape[2:])
        return of_layers(rows, parents).reshape(x.shape)

    return jax.tree.map(reorder, own)
