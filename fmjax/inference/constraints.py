"""Constraints on the next token, from a model's generation config.

Order and definition are those of transformers' logits processors, so that an imported
model generates the same text as in transformers.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fmjax.models.generation import Generation

# Fields of `Generation` that are constraints; the others are defaults of arguments.
_FIELDS = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
)


class History(NamedTuple):
    """The texts so far, with the prompts of a decoder-only model.

    Attributes:
      tokens: int32 [R, N]; values after a row's length are arbitrary.
      lengths: int32 [R].
    """

    tokens: Int[Array, "R N"]
    lengths: Int[Array, " R"]

    def extended(self, written: Int[Array, "R M"], count: Int[Array, ""]) -> "History":
        """The history with the first `count` ids of `written` appended to each row."""
        rows = jnp.arange(len(written))[:, None]
        positions = self.lengths[:, None] + jnp.arange(written.shape[1])
        padded = jnp.pad(self.tokens, [(0, 0), (0, written.shape[1])])
        return History(padded.at[rows, positions].set(written), self.lengths + count)

    def last(self, n: int) -> Int[Array, "R n"]:
        """The last n ids of each row; in a shorter row the first id is repeated."""
        positions = self.lengths[:, None] - n + jnp.arange(n)
        return jnp.take_along_axis(self.tokens, jnp.maximum(positions, 0), axis=1)


def constrains(generation: Generation) -> bool:
    """Whether `constrain_scores` changes anything."""
    plain = Generation()
    return any(getattr(generation, f) != getattr(plain, f) for f in _FIELDS)


def constrain_scores(
    scores: Float[Array, "R V"],
    generation: Generation,
    history: History,
    count: Int[Array, ""],
    *,
    max_tokens: int,
    eos_ids: Int[Array, " E"],
    from_start: bool,
) -> Float[Array, "R V"]:
    """Applies constraints to the scores of the next token.

    Args:
      scores: logits or, in beam search, log-probabilities.
      generation: the constraints.
      history: the texts so far.
      count: number of ids generated so far, int32 [].
      max_tokens: maximum number of generated ids.
      eos_ids: ids that end a text; negative ones are ignored.
      from_start: whether histories start with an encoder-decoder's start token only.

    Returns:
      The scores, with -inf for ids that are excluded, and 0 for ids that are forced.
    """
    g, V = generation, scores.shape[-1]
    if g.repetition_penalty != 1.0:
        seen = _seen(history, V)
        penalized = jnp.where(
            scores < 0, scores * g.repetition_penalty, scores / g.repetition_penalty
        )
        scores = jnp.where(seen, penalized, scores)
    if g.no_repeat_ngram_size:
        banned = _completed_ngrams(history, g.no_repeat_ngram_size, V)
        scores = jnp.where(banned, -jnp.inf, scores)
    if g.bad_words_ids:
        banned = _completed_words(history, g.bad_words_ids, V, eos_ids)
        scores = jnp.where(banned, -jnp.inf, scores)
    ends = jnp.isin(jnp.arange(V), eos_ids)
    if g.min_length or g.min_new_tokens:
        short = (history.lengths < g.min_length) | (count < g.min_new_tokens)
        scores = jnp.where(short[:, None] & ends, -jnp.inf, scores)
    if g.forced_bos_token_id is not None:
        forced = _only(_is_one_of((g.forced_bos_token_id,), V))
        scores = jnp.where(history.lengths[:, None] == 1, forced, scores)
    if g.forced_eos_token_id:
        forced = _only(_is_one_of(g.forced_eos_token_id, V))
        scores = jnp.where(count == max_tokens - 1, forced, scores)
    if g.suppress_tokens:
        scores = jnp.where(_is_one_of(g.suppress_tokens, V), -jnp.inf, scores)
    if g.begin_suppress_tokens:
        # A forced BOS comes before the first generated id.
        first = int(from_start and g.forced_bos_token_id is not None)
        banned = _is_one_of(g.begin_suppress_tokens, V) & (count == first)
        scores = jnp.where(banned, -jnp.inf, scores)
    return scores


def _only(ids: Bool[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
    return np.where(ids, np.float32(0), np.float32(-np.inf))


def _is_one_of(ids: Iterable[int], vocab_size: int) -> Bool[np.ndarray, " V"]:
    return np.isin(np.arange(vocab_size), np.array(list(ids)))


def _seen(history: History, vocab_size: int) -> Bool[Array, "R V"]:
    """Whether each id occurs in each row."""
    R, N = history.tokens.shape
    padding_mask = jnp.arange(N) < history.lengths[:, None]
    # Indices outside the vocabulary are dropped.
    ids = jnp.where(padding_mask, history.tokens, vocab_size)
    none = jnp.zeros((R, vocab_size), bool)
    return none.at[jnp.arange(R)[:, None], ids].set(True, mode="drop")


def _completed_ngrams(history: History, n: int, vocab_size: int) -> Bool[Array, "R V"]:
    """Whether each id would complete an n-gram that the row already contains."""
    R, N = history.tokens.shape
    if n > N:
        return jnp.zeros((R, vocab_size), bool)
    windows = N - n + 1
    prefix = history.last(n - 1)
    matches = jnp.arange(windows) + n - 1 < history.lengths[:, None]
    for i in range(n - 1):
        matches &= history.tokens[:, i : i + windows] == prefix[:, i : i + 1]
    ids = jnp.where(matches, history.tokens[:, n - 1 :], vocab_size)
    none = jnp.zeros((R, vocab_size), bool)
    return none.at[jnp.arange(R)[:, None], ids].set(True, mode="drop")


def _completed_words(
    history: History,
    words: tuple[tuple[int, ...], ...],
    vocab_size: int,
    eos_ids: Int[Array, " E"],
) -> Bool[Array, "R V"]:
    """Whether each id would complete one of the words; EOS as a word is ignored."""
    single = [word[0] for word in words if len(word) == 1]
    ends = jnp.isin(jnp.arange(vocab_size), eos_ids)
    banned = _is_one_of(single, vocab_size) & ~ends
    banned = jnp.broadcast_to(banned, (len(history.lengths), vocab_size))
    for length in sorted({len(word) for word in words} - {1}):
        of_length = np.array([word for word in words if len(word) == length])
        prefix = history.last(length - 1)[:, None]
        matches = (prefix == of_length[:, :-1]).all(-1)
        matches &= history.lengths[:, None] >= length - 1
        ids = jnp.where(matches, of_length[:, -1], vocab_size)
        rows = jnp.arange(len(ids))[:, None]
        banned = banned.at[rows, ids].set(True, mode="drop")
    return banned
