"""Gradients of a global batch, computed in one piece or in several."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Key

from fmjax.objectives.terms import Batch, Objective, total
from fmjax.optim.freezing import combine
from fmjax.training.state import State

Metrics = dict[str, jax.Array]


def accumulate(
    objective: Objective,
    state: State,
    batch: Batch,
    keys: Key[Array, " B"],
    microbatches: int,
    trained: Any = None,
) -> tuple[Any, Metrics]:
    """Gradients and metrics of a global batch, computed in `microbatches` pieces.

    Gradients are of `trained`, those of the parameters that do not count as constants;
    of all of them if not given.

    Each term is divided by its weight over the whole batch from the start, so the
    pieces add up to the gradient of the whole, whatever their padding.
    """
    # Weights depend on the batch alone: XLA drops the forward pass from this.
    terms, _ = objective.loss(state.variables, batch, None)
    weights = {name: term.weight for name, term in terms.items()}
    trained = state.params if trained is None else trained

    def variables(trained):
        return {"params": combine(trained, state.params), **state.extra}

    def weighted(terms, ratios):
        sums = {name: term.coefficient * term.sum for name, term in terms.items()}
        return total(terms, weights), (sums, ratios)

    if microbatches > 1 and hasattr(objective, "embed"):
        add_up = _through_embeddings
    else:
        add_up = _piece_by_piece
    (value, (sums, ratios)), grads = add_up(
        objective, variables, weighted, trained, batch, keys, microbatches
    )
    metrics = {"loss": value, objective.unit: next(iter(weights.values()))}
    for name in sums:
        metrics[name] = sums[name] / jnp.maximum(weights[name], 1e-9)
    for name, ratio in ratios.items():
        metrics[name] = ratio.sum / jnp.maximum(ratio.weight, 1e-9)
    return grads, metrics


def _piece_by_piece(objective, variables, weighted, trained, batch, keys, microbatches):
    """Of a loss that is a sum over rows."""

    def loss(trained, batch, keys):
        return weighted(*objective.loss(variables(trained), batch, keys))

    return _sum_over_pieces(loss, trained, (batch, keys), microbatches)


def _through_embeddings(
    objective, variables, weighted, trained, batch, keys, microbatches
):
    """Of a loss that compares every row with all others (Gao et al. 2021, GradCache).

    All rows are embedded first; the gradients of their embeddings, taken at once, are
    then led back through each piece, whose forward pass is done again by the same keys.
    """

    def embed(_, piece):
        embeddings, _, _ = objective.embed(variables(trained), *piece)
        return None, embeddings

    def of_all(trained, embeddings):
        return weighted(
            *objective.loss_from_embeddings(variables(trained), embeddings, batch)
        )

    def of_piece(trained, batch, keys, gradients):
        embeddings, terms, ratios = objective.embed(variables(trained), batch, keys)
        value, aux = weighted(terms, ratios)
        products = jax.tree.map(jnp.vdot, embeddings, gradients)
        return value + sum(jax.tree.leaves(products)), (value, aux)

    pieces = jax.tree.map(lambda x: split_rows(x, microbatches), (batch, keys))
    _, embeddings = jax.lax.scan(embed, None, pieces)
    embeddings = jax.tree.map(_join_rows, embeddings)
    gradient = jax.value_and_grad(of_all, (0, 1), has_aux=True)
    (value, (sums, ratios)), (grads, gradients) = gradient(trained, embeddings)
    (_, (other, (more_sums, more_ratios))), more_grads = _sum_over_pieces(
        of_piece, trained, (batch, keys, gradients), microbatches
    )
    aux = (more_sums | sums, more_ratios | ratios)
    return (value + other, aux), jax.tree.map(jnp.add, grads, more_grads)


def _sum_over_pieces(loss: Callable, trained, arrays, microbatches: int):
    """What `value_and_grad` with auxiliary sums gives, added up over pieces of rows."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
        return gradient(trained, *arrays)

    def add(carry, piece):
        return jax.tree.map(jnp.add, carry, gradient(trained, *piece)), None

    pieces = jax.tree.map(lambda x: split_rows(x, microbatches), arrays)
    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(gradient, trained, *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, pieces)[0]


def split_rows(x: jax.Array, pieces: int) -> jax.Array:
    """[B, …] → [pieces, B / pieces, …]; piece i takes rows i, i + pieces, ….

    Strided, because then every device's share of a piece is rows that it already has.
    """
    split = jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0)
    return nn.with_logical_constraint(
        split, (None, "batch") + (None,) * (split.ndim - 2)
    )


def _join_rows(x: jax.Array) -> jax.Array:
    """The inverse of `split_rows`."""
    joined = jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
    return nn.with_logical_constraint(joined, ("batch",) + (None,) * (joined.ndim - 1))
