"""What every objective gives: named terms that add up over microbatches and hosts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

Batch = dict[str, jax.Array]
UNITS = ("tokens", "images", "pairs")
# The shape of each array of a row.
RowShapes = Mapping[str, tuple[int, ...]]


class Term(NamedTuple):
    """One part of a loss: coefficient · sum / weight.

    Attributes:
      sum: scalar sum over the examples of a batch.
      weight: scalar that the sum over the *global* batch is divided by. It depends on
        the batch alone, never on parameters, so it is known before the backward pass.
      coefficient: share of this term in the loss.
    """

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    coefficient: float = 1.0


class Ratio(NamedTuple):
    """A metric, sum / weight, both of which add up over batches."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


class LossOutput(NamedTuple):
    """What a loss gives of a batch.

    Attributes:
      terms: parts of the loss by name. Their sum may be differentiated, one of them
        alone not: terms of equal weight may share one backward pass.
      metrics: ratios by name.
      collections: of the variables other than the parameters, those that have changed,
        whole: {"batch_stats": …}.
    """

    terms: dict[str, Term]
    metrics: dict[str, Ratio]
    collections: Mapping[str, Any] = {}

    def joined(self, other: "LossOutput") -> "LossOutput":
        """Both outputs as one; of the collections, this one's are the newer."""
        return LossOutput(
            self.terms | other.terms,
            self.metrics | other.metrics,
            {**other.collections, **self.collections},
        )


def total(
    terms: dict[str, Term], weights: dict[str, jax.Array] | None = None
) -> Float[Array, ""] | float:
    """Σ coefficient · sum / weight; `weights` replaces the terms' own, by name.

    A term of no weight (a batch of padding) counts as zero; no terms give 0.0.
    """
    loss = 0.0
    for name, term in terms.items():
        weight = term.weight if weights is None else weights[name]
        safe = jax.numpy.where(weight > 0, weight, 1.0)
        loss += term.coefficient * term.sum / safe
    return loss
