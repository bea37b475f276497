"""Perturbations of word vectors, for adversarial training and robust accuracy.

A perturbation is an array of the collection "perturbation" at the module that reads the
word vectors, so that neither models nor objectives need arguments for it.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Bool, Float

_COLLECTION, _NAME = "perturbation", "words"


class WordVectors(NamedTuple):
    """Word vectors that a model read.

    Attributes:
      shape: (B, T, D).
      mask: False for padding, which is never perturbed.
    """

    shape: tuple[int, ...]
    mask: Bool[Array, "B T"]


_recorded: contextvars.ContextVar[dict[str, WordVectors] | None] = (
    contextvars.ContextVar("recorded word vectors", default=None)
)


@contextlib.contextmanager
def recorded_words() -> Iterator[dict[str, WordVectors]]:
    """Context manager: the word vectors that calls inside it read, by module path."""
    found: dict[str, WordVectors] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def perturbed(
    module: nn.Module, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None
) -> Float[Array, "B T D"]:
    """Word vectors with the module's perturbation, if the variables have one.

    Args:
      module: that reads the word vectors.
      x: the word vectors, as they are in the table, before factors and positions.
      mask: False for padding; None if nothing is.
    """
    found = _recorded.get()
    if found is not None:
        every = jnp.ones(x.shape[:2], bool) if mask is None else mask
        found["/".join(module.path)] = WordVectors(x.shape, every)
    delta = module.get_variable(_COLLECTION, _NAME)
    if delta is None:
        return x
    if mask is not None:
        delta = jnp.where(mask[..., None], delta, 0)
    return x + delta.astype(x.dtype)


def with_perturbation(
    variables: Mapping[str, Any], deltas: Mapping[str, Float[Array, "B T D"]]
) -> dict[str, Any]:
    """Variables with perturbations, by the paths of `recorded_words`."""
    named = {
        (*filter(None, path.split("/")), _NAME): delta for path, delta in deltas.items()
    }
    return {**variables, _COLLECTION: traverse_util.unflatten_dict(named)}
