"""Vectors of texts: a language model's hidden states, pooled over the tokens."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from fmjax.errors import UserError
from fmjax.models.contracts import (
    GeneratesFromImages,
    GeneratesFromText,
    PredictsTokens,
)
from fmjax.models.layers.text_inputs import TextInputs

Pooling = Literal["mean", "first", "last"]


def check_reads_texts(model: nn.Module) -> None:
    """Raises a UserError for a model that is not one of texts alone."""
    if not isinstance(model, PredictsTokens) or isinstance(model, GeneratesFromImages):
        raise UserError(
            f"@{model.gin_name}() does not read texts alone; expected a language model."
        )


def pooled_hidden(
    model: nn.Module, variables: Mapping[str, Any], text: TextInputs, pooling: Pooling
) -> Float[Array, "B D"]:
    """The pooled hidden states of texts with a padding mask, float32.

    Of an encoder-decoder they are the encoder's.
    """
    method = model.encode if isinstance(model, GeneratesFromText) else model.hidden
    hidden = model.apply(variables, text, method=method)["hidden"]
    return _pool(hidden.astype(jnp.float32), text.padding_mask, pooling)


def _pool(
    hidden: Float[Array, "B T D"], padding_mask: Bool[Array, "B T"], pooling: Pooling
) -> Float[Array, "B D"]:
    if pooling == "first":
        return hidden[:, 0]
    counts = padding_mask.sum(1)
    if pooling == "last":
        return jnp.take_along_axis(hidden, (counts - 1)[:, None, None], 1)[:, 0]
    return jnp.where(padding_mask[..., None], hidden, 0).sum(1) / counts[:, None]
