"""Tokens drawn one after another, with a key-value cache: one compiled loop."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.inference.decoder import Own, decoder_of, next_logits
from fmjax.inference.prompts import pad
from fmjax.inference.sampling import Sampling, sample
from fmjax.models.layers.logical_axes import constrain


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
    eos_id: int | None = None,
    padding_id: int | None = None,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """Continues, or answers, rows of ids of different lengths in one batch.

    It is compiled once for every number of rows, power of two of the longest prompt,
    max_tokens and vocab_size.

    Args:
      model: with a decoder, and maybe an encoder, which then reads the prompts.
      params: its parameters.
      prompts: ids, at least one a row.
      images: one a prompt, for a model that sees them, normalized.
      max_tokens: the most ids written for a prompt.
      sampling: how they are drawn.
      seed: see `rows`.
      rows: a number for each row; what it draws depends on this, on the seed and on the
        position, and not on the batch. Its place in the batch if not given.
      eos_id: ends a row, of which it then is the last id.
      padding_id: never drawn.
      vocab_size: ids at and above it are never drawn; model.vocab_size if not given.

    Returns:
      The ids written for each prompt.

    Raises:
      UserError: for a model without a decoder, prompts and max_tokens that exceed
        model.max_length, images that do not go with them, or a number out of range.
    """
    decoder = decoder_of(model)
    sampling.check()
    if not prompts:
        return []
    padded = pad(decoder, prompts, max_tokens, images)
    written = _write(
        decoder,
        nn.get_logical_axis_rules(),
        max_tokens,
        min(model.vocab_size, vocab_size or model.vocab_size),
        params,
        padded,
        np.uint32(seed % 2**32),
        np.arange(len(prompts)) if rows is None else np.array(rows),
        # 0 and 1.0 are of different types, which would compile twice.
        dataclasses.replace(sampling, temperature=np.float32(sampling.temperature)),
        np.int32(-1 if eos_id is None else eos_id),
        np.int32(-1 if padding_id is None else padding_id),
    )
    tokens, counts = np.asarray(written.tokens), np.asarray(written.counts)
    return [row[:count].tolist() for row, count in zip(tokens, counts)]


class _Written(NamedTuple):
    tokens: Int[Array, "B N"]  # zeros after each row's end
    counts: Int[Array, " B"]


class _State(NamedTuple):
    count: jax.Array  # ids written so far
    tokens: jax.Array  # [B, max_tokens]
    counts: jax.Array  # [B]
    ended: jax.Array  # [B]
    hidden: jax.Array  # [B, 1, D], of the newest id
    own: Own


# The rules are flax's, outside what jit knows to tell traces apart by, hence a static
# argument of their own.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _write(
    decoder,
    rules,
    max_tokens,
    vocab_size,
    params,
    prompts,
    seed,
    rows,
    sampling,
    eos_id,
    padding_id,
):
    del rules
    lengths = prompts.lengths
    B = len(lengths)
    fold = jax.vmap(jax.random.fold_in)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
    hidden, own, source = decoder.begin(params, prompts, max_tokens)

    def unfinished(state):
        return (state.count < max_tokens) & ~state.ended.all()

    def step(state):
        position = decoder.position(lengths, state.count)
        logits = next_logits(decoder.model, params, state.hidden)[:, :vocab_size]
        logits = jnp.where(jnp.arange(vocab_size) == padding_id, -jnp.inf, logits)
        drawn = sample(logits, fold(keys, position), sampling)
        drawn = jnp.where(state.ended, 0, drawn)
        hidden, own = decoder.read(
            params, drawn[:, None], position[:, None], state.own, source, lengths
        )
        return _State(
            count=state.count + 1,
            tokens=state.tokens.at[:, state.count].set(drawn),
            counts=state.counts + ~state.ended,
            ended=state.ended | (drawn == eos_id),
            hidden=hidden,
            own=own,
        )

    start = _State(
        count=jnp.int32(0),
        tokens=jnp.zeros((B, max_tokens), jnp.int32),
        counts=jnp.zeros(B, jnp.int32),
        ended=jnp.zeros(B, bool),
        hidden=hidden,
        own=own,
    )
    end = jax.lax.while_loop(unfinished, step, start)
    # Whole on every device, so that every process can read them.
    return _Written(constrain(end.tokens, None, None), constrain(end.counts, None))
