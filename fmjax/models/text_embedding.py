"""Vectors of texts: a language model's hidden states, pooled over the tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.contracts import (
    GeneratesFromImages,
    GeneratesFromText,
    PredictsTokens,
)
from fmjax.models.layers.attention_mask import padding_mask_of
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.token_heads import last_vectors

Pooling = Literal[
    "mean", "first", "last", "max", "weighted_mean", "mean_sqrt_length", "pooler"
]


@configurable("text_embedding")
@dataclasses.dataclass(frozen=True)
class TextEmbedding:
    """How a text's vector follows from the hidden states of its tokens.

    Attributes:
      pooling: "mean" of the tokens; the "first", as encoders have [CLS]; the "last",
        which in a decoder has read all others; the "max" of each entry;
        "weighted_mean", by the tokens' positions from 1 (SGPT, Muennighoff 2022);
        "mean_sqrt_length", their sum divided by the root of their number; or the output
        of the model's "pooler" (bert.pooler). Special tokens count as tokens.
      normalize: whether vectors are divided by their length.
      max_length: the most tokens of a text with special tokens; None for the model's.
      prompt: put before every text.
    """

    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None
    prompt: str = ""

    def __post_init__(self):
        least = self.max_length is None or self.max_length >= 1
        require(self, "max_length", least, "at least 1, or None")


def check_embeds_texts(model: nn.Module, pooling: Pooling) -> None:
    """Raises a UserError for a model that has no such vectors of texts."""
    if not isinstance(model, PredictsTokens) or isinstance(model, GeneratesFromImages):
        raise UserError(
            f"@{model.gin_name}() does not read texts alone; expected a language model."
        )
    if pooling == "pooler" and getattr(model, "pooler", "none") == "none":
        raise UserError(
            f"pooling = 'pooler', but @{model.gin_name}() has no pooler; expected "
            "@bert() with bert.pooler = 'tanh', or another pooling."
        )


def embed_texts(
    model: nn.Module,
    variables: Mapping[str, Any],
    text: TextInputs,
    pooling: Pooling,
    keys: Keys = None,
) -> Float[Array, "B D"]:
    """The pooled hidden states of texts, float32; zeros for a row of padding alone.

    Of an encoder-decoder they are the encoder's.

    Args:
      model: a language model.
      variables: of the model.
      text: [B, T], each row a text, with a padding mask or segment ids.
      pooling: see `TextEmbedding`.
      keys: one key per text for dropout; None in evaluation.
    """
    method = model.encode if isinstance(model, GeneratesFromText) else model.hidden
    out = model.apply(variables, text, keys=keys, method=method)
    if pooling == "pooler":
        return out["pooled"].astype(jnp.float32)
    mask = padding_mask_of(text.segment_ids, text.padding_mask)
    return _pool(out["hidden"].astype(jnp.float32), mask, pooling)


def _pool(
    hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"], pooling: Pooling
) -> Float[Array, "B D"]:
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return last_vectors(hidden, mask)
    if pooling == "max":
        least = jnp.finfo(hidden.dtype).min
        best = jnp.where(mask[..., None], hidden, least).max(1)
        return jnp.where(mask.any(1, keepdims=True), best, 0)
    weights = mask.astype(hidden.dtype)
    if pooling == "weighted_mean":
        weights = weights * jnp.cumsum(weights, 1)
    total = jnp.maximum(weights.sum(1, keepdims=True), 1)
    if pooling == "mean_sqrt_length":
        total = jnp.sqrt(total)
    return jnp.where(mask[..., None], hidden * weights[..., None], 0).sum(1) / total
