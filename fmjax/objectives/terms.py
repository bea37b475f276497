"""Loss terms and metrics, whose sums add up over microbatches and hosts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

Batch = dict[str, jax.Array]
UNITS = ("tokens", "images", "pairs", "texts")
# The shape of each array of a row.
RowShapes = Mapping[str, tuple[int, ...]]


class Term(NamedTuple):
    """A loss term: coefficient · sum / weight.

    Attributes:
      sum: scalar sum over the examples of a batch.
      weight: scalar that the sum over the *global* batch is divided by. It depends on
        the batch alone, never on parameters, so it is known before the backward pass.
      coefficient: multiplies the term in the loss.
    """

    sum: Float[Array, ""]
    weight: Float[Array, ""]
    coefficient: float = 1.0


class Ratio(NamedTuple):
    """A metric: sum / weight, scalars that both add up over batches."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


class LossOutput(NamedTuple):
    """Terms, metrics and changed collections that a loss returns for a batch.

    Attributes:
      terms: parts of the loss by name. Only their total may be differentiated, not a
        single term, because terms of equal weight may share one backward pass.
      metrics: ratios by name.
      collections: changed collections other than the parameters, each complete, such as
        {"batch_stats": …}.
    """

    terms: dict[str, Term]
    metrics: dict[str, Ratio]
    collections: Mapping[str, Any] = {}

    def joined(self, other: "LossOutput") -> "LossOutput":
        """Merges both outputs; for collections in both, those of `self` are used."""
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
