"""Beam search with a key-value cache: one compiled loop on the device."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.errors import UserError
from fmjax.inference.decoder import Own, decoder_of, next_logits
from fmjax.inference.prompts import pad
from fmjax.models.layers.logical_axes import constrain


class Hypothesis(NamedTuple):
    """A continuation that was found.

    Attributes:
      tokens: ids, the last one EOS unless max_tokens ended them.
      score: their log-probability over `penalty` of their number.
    """

    tokens: list[int]
    score: float


def penalty(
    length: int | Int[Array, "..."], alpha: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """((5 + n) / 6)^alpha, by which log-probabilities are divided.

    Wu et al. 2016, equation 14. With alpha = 0 it is 1, so that long texts, less likely
    as they are, lose; Vaswani et al. 2017 take 0.6. A `length_penalty` of transformers
    divides by n^alpha, so that one in the generation config of an imported model does
    not carry over.
    """
    return ((5.0 + length) / 6.0) ** jnp.float32(alpha)


def beam_search_tokens(
    model: nn.Module,
    params: dict,
    prompts: Sequence[Sequence[int]],
    *,
    images: Float[np.ndarray, "B height width C"] | None = None,
    max_tokens: int,
    beams: int,
    length_penalty: float = 0.0,
    n_best: int = 1,
    eos_id: int | None = None,
    padding_id: int | None = None,
    vocab_size: int | None = None,
) -> list[list[Hypothesis]]:
    """Looks for the continuations of the best score, from left to right.

    After every token the `beams` likeliest beginnings that did not end are kept, and
    as many of the best that did: those whose EOS was among the `beams` likeliest next
    tokens of all, or that max_tokens cut. A row is done when no beginning can become
    better than the worst ending that is kept.

    Args:
      model: as in `generate_tokens`.
      params: its parameters.
      prompts: ids, at least one a row.
      images: one a prompt, for a model that sees them, normalized.
      max_tokens: the most ids written for a prompt.
      beams: K, beginnings kept; 1 is greedy.
      length_penalty: see `penalty`.
      n_best: how many are given, at most `beams`.
      eos_id: ends a text.
      padding_id: never written.
      vocab_size: ids at and above it are never written; model.vocab_size if not given.

    Returns:
      For each prompt the n_best found, best first; fewer only where fewer exist.

    Raises:
      UserError: as `generate_tokens`.
    """
    decoder = decoder_of(model)
    if beams < 1:
        raise UserError(f"beams = {beams}: expected at least 1.")
    if not 1 <= n_best <= beams:
        raise UserError(f"n_best = {n_best}: expected 1 to beams = {beams}.")
    if not 0 <= length_penalty < float("inf"):
        raise UserError(f"length_penalty = {length_penalty}: expected 0 or more.")
    if not prompts:
        return []
    padded = pad(decoder, prompts, max_tokens, images)
    found = _search(
        decoder,
        nn.get_logical_axis_rules(),
        max_tokens,
        beams,
        min(model.vocab_size, vocab_size or model.vocab_size),
        params,
        padded,
        np.float32(length_penalty),
        np.int32(-1 if eos_id is None else eos_id),
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
    """Of every row some texts, the best first; a score of -inf stands for none."""

    tokens: jax.Array  # [B, K, max_tokens], zeros after their ends
    lengths: jax.Array  # [B, K]
    scores: jax.Array  # [B, K]

    def best(self, count: int) -> tuple["_Texts", jax.Array]:
        """The `count` best, of equal ones the first, and which they were."""
        scores, which = jax.lax.top_k(self.scores, count)
        tokens = jnp.take_along_axis(self.tokens, which[..., None], axis=1)
        lengths = jnp.take_along_axis(self.lengths, which, axis=1)
        return _Texts(tokens, lengths, scores), which


class _State(NamedTuple):
    count: jax.Array  # ids of every beginning
    live: _Texts  # their scores are log-probabilities
    ended: _Texts  # with the length penalty
    hidden: jax.Array  # [B · K, 1, D], of each beginning's newest id
    own: Own


# See `token_loop` for the rules.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _search(
    decoder,
    rules,
    max_tokens,
    K,
    vocab_size,
    params,
    prompts,
    alpha,
    eos_id,
    padding_id,
):
    del rules
    lengths = prompts.lengths
    B, ids = len(lengths), jnp.arange(vocab_size)
    hidden, own, source = decoder.begin(params, prompts, max_tokens)

    def unfinished(state):
        # Scores fall with every token, and the penalty helps the longest most.
        within_reach = state.live.scores.max(1) / penalty(max_tokens, alpha)
        open_rows = within_reach > state.ended.scores.min(1)
        return (state.count < max_tokens) & open_rows.any()

    def step(state):
        logits = next_logits(decoder.model, params, state.hidden)
        scores = jax.nn.log_softmax(logits)[:, :vocab_size]
        scores = jnp.where(ids == padding_id, -jnp.inf, scores)
        scores = state.live.scores[..., None] + scores.reshape(B, K, -1)
        # One of every beginning's ids is EOS, so that K or more of these are not. First
        # of each beginning: XLA would sort all K · V of them on a CPU.
        scores, drawn = jax.lax.top_k(scores, min(2 * K, vocab_size))
        each = scores.shape[-1]
        scores, which = jax.lax.top_k(scores.reshape(B, -1), min(2, each) * K)
        parents = which // each
        drawn = jnp.take_along_axis(drawn.reshape(B, -1), which, axis=1)
        tokens = jnp.take_along_axis(state.live.tokens, parents[..., None], axis=1)
        tokens = tokens.at[:, :, state.count].set(drawn)
        count = state.count + 1
        every = _Texts(tokens, jnp.full(drawn.shape, count), scores)
        ends = drawn == eos_id

        likely = jax.tree.map(lambda x: x[:, :K], every)
        kept = jnp.where(
            ends[:, :K] | (count == max_tokens),
            likely.scores / penalty(count, alpha),
            -jnp.inf,
        )
        likely = likely._replace(scores=kept)
        # What was there already comes first, and so wins where both are equal.
        joined = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), state.ended, likely
        )
        ended, _ = _Texts(*joined).best(K)

        going_on = every._replace(scores=jnp.where(ends, -jnp.inf, every.scores))
        live, which = going_on.best(K)
        own = _reorder(state.own, jnp.take_along_axis(parents, which, axis=1))
        position = jnp.repeat(decoder.position(lengths, state.count), K)
        newest = live.tokens[:, :, state.count].reshape(-1, 1)
        hidden, own = decoder.read(
            params, newest, position[:, None], own, source, lengths
        )
        return _State(count, live, ended, hidden, own)

    nothing = _Texts(
        jnp.zeros((B, K, max_tokens), jnp.int32),
        jnp.zeros((B, K), jnp.int32),
        jnp.full((B, K), -jnp.inf),
    )
    start = _State(
        count=jnp.int32(0),
        # One empty beginning: K of them would stay K times the same.
        live=nothing._replace(scores=nothing.scores.at[:, 0].set(0.0)),
        ended=nothing,
        hidden=jnp.repeat(hidden, K, axis=0),
        own=jax.tree.map(lambda x: jnp.repeat(x, K, axis=1), own),
    )
    ended = jax.lax.while_loop(unfinished, step, start).ended
    # Whole on every device, so that every process can read them.
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), ended)


def _reorder(own: Own, parents: Int[Array, "B K"]) -> Own:
    """Gives every beam what its parent has read."""
    B, K = parents.shape

    # Row by row, so that rows which lie on several devices stay there.
    of_row = jax.vmap(lambda beams, p: beams[p])
    of_layers = jax.vmap(of_row, (0, None))

    def reorder(x):
        rows = x.reshape(len(x), B, K, *x.shape[2:])
        return of_layers(rows, parents).reshape(x.shape)

    return jax.tree.map(reorder, own)
