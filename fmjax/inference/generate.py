"""Autoregressive generation with a key-value cache: one compiled loop on the device."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int, UInt32

from fmjax.data.tokenizers import start_id
from fmjax.errors import UserError
from fmjax.inference.load import Run
from fmjax.inference.sampling import Sampling, sample
from fmjax.models.gpt import GPT
from fmjax.models.layers import constrain
from fmjax.models.transformer import Cache

# Prompts are padded to a power of two of at least this, so that few shapes compile.
_SHORTEST_BUCKET = 16


def generate(
    run: Run,
    prompts: Sequence[str],
    *,
    max_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Continues texts with a trained run, all of them in one batch.

    Args:
      run: what `fmjax.load` gave.
      prompts: texts; each is read as the beginning of a document.
      max_tokens: the most tokens written after a prompt; the end of a document stops it
        earlier.
      temperature: see `Sampling`.
      top_k: see `Sampling`.
      top_p: see `Sampling`.
      seed: a row draws by the seed, its place in `prompts` and its position alone.

    Returns:
      The continuations, without their prompts.

    Raises:
      UserError: for a run without a tokenizer, an empty prompt where the tokenizer has
        no id to begin with, or numbers out of range.
    """
    tokenizer = run.tokenizer
    if tokenizer is None:
        raise UserError(
            "This run has no tokenizer, so no text goes in or out; "
            "fmjax.inference.generate.generate_tokens takes ids."
        )
    if isinstance(prompts, str):
        raise UserError(f"prompts = {prompts!r}: expected a list of texts.")
    ids = [_prompt(run, text) for text in prompts]
    # Copies of the first row fill the last shard, and end when it does.
    filled = ids + ids[:1] * (-len(ids) % run.row_multiple)
    with run.on_mesh():
        written = generate_tokens(
            run.model,
            run.params,
            filled,
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_k, top_p),
            seed=seed,
            rows=[*range(len(ids)), *[0] * (len(filled) - len(ids))],
            eos_id=tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size,
        )
    return [_continuation(tokenizer, *pair) for pair in zip(ids, written)]


def generate_tokens(
    model: GPT,
    params: dict,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    eos_id: int | None = None,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """Continues rows of ids of different lengths in one batch.

    Args:
      model: a decoder with `hidden`, `head` and `empty_cache`.
      params: its parameters.
      prompts: ids, at least one a row.
      max_tokens: the most ids written after a prompt.
      sampling: how they are drawn.
      seed: see `rows`.
      rows: a number for each row; what it draws depends on this, on the seed and on the
        position, and not on the batch. Its place in the batch if not given.
      eos_id: ends a row, of which it then is the last id.
      vocab_size: ids at and above it are never drawn; model.vocab_size if not given.

    Returns:
      The ids written after each prompt.

    Raises:
      UserError: where a prompt and max_tokens exceed model.max_length, or a number is
        out of range.
    """
    sampling.check()
    lengths = [len(prompt) for prompt in prompts]
    if not lengths:
        return []
    if max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens}: expected at least 1.")
    if min(lengths) < 1:
        raise UserError(f"prompt {lengths.index(0)} has no tokens; expected one.")
    if max(lengths) + max_tokens > model.max_length:
        raise UserError(
            f"max_tokens = {max_tokens} after a prompt of {max(lengths)} tokens make "
            f"{max(lengths) + max_tokens}, gpt.max_length = {model.max_length}."
        )
    bucket = max(_SHORTEST_BUCKET, 1 << (max(lengths) - 1).bit_length())
    padded = np.zeros((len(prompts), min(bucket, model.max_length)), np.int32)
    for row, prompt in zip(padded, prompts):
        row[: len(prompt)] = prompt
    if padded.min() < 0 or padded.max() >= model.vocab_size:
        raise UserError(
            f"prompts hold ids from {padded.min()} to {padded.max()}; expected 0 to "
            f"gpt.vocab_size - 1 = {model.vocab_size - 1}."
        )
    written = decode(
        model,
        params,
        padded,
        np.array(lengths, np.int32),
        np.uint32(seed % 2**32),
        np.arange(len(prompts)) if rows is None else np.array(rows),
        sampling,
        np.int32(-1 if eos_id is None else eos_id),
        max_tokens=max_tokens,
        vocab_size=min(model.vocab_size, vocab_size or model.vocab_size),
    )
    tokens, counts = np.asarray(written.tokens), np.asarray(written.counts)
    return [row[:count].tolist() for row, count in zip(tokens, counts)]


class Written(NamedTuple):
    """What `decode` gives.

    Attributes:
      tokens: int32 [B, max_tokens], zeros after each row's end.
      counts: int32 [B], ids of each row, an end-of-document id among them.
    """

    tokens: Int[Array, "B N"]
    counts: Int[Array, " B"]


def decode(
    model: GPT,
    params: dict,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    seed: UInt32[Array, ""],
    rows: Int[Array, " B"],
    sampling: Sampling,
    eos_id: Int[Array, ""],
    *,
    max_tokens: int,
    vocab_size: int,
) -> Written:
    """Reads prompts at once, then writes token by token until every row ended.

    It is compiled once for every (model, B, P, max_tokens, vocab_size).

    Args:
      model: a decoder.
      params: its parameters.
      prompts: right-padded ids.
      lengths: ids of each prompt, from 1 to P.
      seed: of the key of a draw, which is folded with the row's number and with the
        position that is drawn.
      rows: numbers of the rows.
      sampling: how ids are drawn.
      eos_id: ends a row; -1 for none.
      max_tokens: ids written for each row.
      vocab_size: ids at and above it are never drawn.
    """
    return _decode(
        model,
        nn.get_logical_axis_rules(),
        max_tokens,
        vocab_size,
        params,
        prompts,
        lengths,
        seed,
        rows,
        # 0 and 1.0 are of different types, which would compile twice.
        dataclasses.replace(sampling, temperature=np.float32(sampling.temperature)),
        eos_id,
    )


class _State(NamedTuple):
    count: jax.Array  # ids written so far
    tokens: jax.Array  # [B, max_tokens]
    counts: jax.Array  # [B]
    ended: jax.Array  # [B]
    hidden: jax.Array  # [B, 1, D], of the newest id
    cache: Cache


# The rules are flax's, outside what jit knows to tell traces apart by, hence a static
# argument of their own.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(
    model,
    rules,
    max_tokens,
    vocab_size,
    params,
    prompts,
    lengths,
    seed,
    rows,
    sampling,
    eos_id,
):
    del rules
    B, P = prompts.shape
    variables = {"params": params}
    fold = jax.vmap(jax.random.fold_in)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)

    def read(tokens, positions, cache):
        out = model.apply(
            variables, tokens, positions=positions, cache=cache, method="hidden"
        )
        return out["hidden"], out["cache"]

    def unfinished(state):
        return (state.count < max_tokens) & ~state.ended.all()

    def step(state):
        # Slots are positions: each row goes on at its own length, over its padding.
        position = lengths + state.count
        logits = model.apply(variables, state.hidden, method="head")[:, 0, :vocab_size]
        drawn = sample(logits, fold(keys, position), sampling)
        drawn = jnp.where(state.ended, 0, drawn)
        hidden, cache = read(drawn[:, None], position[:, None], state.cache)
        return _State(
            count=state.count + 1,
            tokens=state.tokens.at[:, state.count].set(drawn),
            counts=state.counts + ~state.ended,
            ended=state.ended | (drawn == eos_id),
            hidden=hidden,
            cache=cache,
        )

    cache = model.empty_cache(B, min(P + max_tokens, model.max_length))
    hidden, cache = read(prompts, jnp.broadcast_to(jnp.arange(P), (B, P)), cache)
    start = _State(
        count=jnp.int32(0),
        tokens=jnp.zeros((B, max_tokens), jnp.int32),
        counts=jnp.zeros(B, jnp.int32),
        ended=jnp.zeros(B, bool),
        hidden=jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1),
        cache=cache,
    )
    end = jax.lax.while_loop(unfinished, step, start)
    # Whole on every device, so that every process can read them.
    return Written(constrain(end.tokens, None, None), constrain(end.counts, None))


def _prompt(run: Run, text: str) -> list[int]:
    """Ids of the beginning of a document, as the model read it in training."""
    # What a model that was imported read is not known but from its tokenizer's BOS.
    imported = run.config.data is None
    first = run.tokenizer.bos_id if imported and text else start_id(run.tokenizer)
    ids = ([] if first is None else [first]) + run.tokenizer.encode(text)
    if not ids:
        raise UserError(
            "An empty prompt needs a tokenizer with an id that begins or ends a "
            "document, which this run's does not have. Expected some text."
        )
    return ids


def _continuation(tokenizer, prompt: list[int], new: list[int]) -> str:
    """The text of `new`, decoded behind its prompt, on which its spelling may depend.

    SentencePiece, for one, drops a space in front of the first piece it decodes.
    """
    if new and new[-1] == tokenizer.eos_id:
        new = new[:-1]
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + new)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)
