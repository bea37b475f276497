"""What every objective gives: named terms that add up over microbatches and hosts."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
from jaxtyping import Array, Float, Key

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


class Objective(Protocol):
    """What training minimizes: a frozen dataclass that holds a model.

    The weight of the first term counts the targets, by which throughput is measured;
    `unit`, one of `UNITS`, says what they are.
    """

    model: object
    unit: str

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables {"params": …, other collections}."""

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """Terms and metrics of a batch; one key an example, None in evaluation."""

    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError where the model cannot take such rows; None: no text."""

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for a row, by the papers' formulas."""


def total(terms: dict[str, Term], weights: dict[str, jax.Array] | None = None):
    """Σ coefficient · sum / weight; `weights` replaces the terms' own, by name.

    A term of no weight (a batch of padding) counts as zero.
    """
    loss = 0.0
    for name, term in terms.items():
        weight = term.weight if weights is None else weights[name]
        safe = jax.numpy.where(weight > 0, weight, 1.0)
        loss += term.coefficient * term.sum / safe
    return loss
