"""Vectors of texts: a language model's hidden states, pooled over the tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from fmjax.errors import UserError
from fmjax.inference.text_rows import TextRow, batches
from fmjax.models.call_arguments import array_names
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


def pooled_vectors(
    model: nn.Module,
    variables: Mapping[str, Any],
    rows: Sequence[TextRow],
    pooling: Pooling,
    batch_size: int,
) -> Float[np.ndarray, "N D"]:
    """The pooled hidden states of texts; see `fmjax.inference.load.Run.embed`."""
    reads_types = "token_types" in array_names(model)
    method = model.encode if isinstance(model, GeneratesFromText) else model.hidden

    @jax.jit
    def vectors(variables, text):
        hidden = model.apply(variables, text, method=method)["hidden"]
        return _pool(hidden.astype(jnp.float32), text.padding_mask, pooling)

    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for numbers, arrays in batches(rows, batch_size, model.max_length):
        if not reads_types:
            del arrays["token_types"]
        pooled = np.asarray(vectors(variables, TextInputs(**arrays)))
        for number, vector in zip(numbers, pooled):
            found[number] = vector
    return np.stack(found)


def _pool(
    hidden: Float[Array, "B T D"], padding_mask: Bool[Array, "B T"], pooling: Pooling
) -> Float[Array, "B D"]:
    if pooling == "first":
        return hidden[:, 0]
    counts = padding_mask.sum(1)
    if pooling == "last":
        return jnp.take_along_axis(hidden, (counts - 1)[:, None, None], 1)[:, 0]
    return jnp.where(padding_mask[..., None], hidden, 0).sum(1) / counts[:, None]
