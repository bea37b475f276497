"""Models whose head is the embedding table, with a head of its own instead."""

from typing import Any

from flax import linen as nn
from jaxtyping import Array

from fmjax.models.contracts import TiesEmbeddings

TABLE = "tokens/table"
HEAD = "language_head/kernel"
_OTHER_HEADS = ("num_classes", "token_classes", "spans")


def is_tied(model: nn.Module) -> bool:
    """Whether a model predicts tokens by its embedding table, and need not."""
    tied = isinstance(model, TiesEmbeddings) and model.tie_embeddings
    return tied and not any(getattr(model, name, None) for name in _OTHER_HEADS)


def untied(model: nn.Module) -> nn.Module:
    """The model with a head of its own, whose kernel is at `HEAD`."""
    return model.clone(tie_embeddings=False)


def head_of(table: Array) -> Any:
    """The kernel of a head that computes what a tied one does with a table."""
    return table.T
