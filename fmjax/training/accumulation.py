"""Gradients of a global batch, computed in one piece or in several."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Key

from fmjax.objectives.objective import EmbeddingObjective, Objective
from fmjax.objectives.terms import Batch, LossOutput, total
from fmjax.optim.parametrization import combine
from fmjax.training.state import State

Metrics = dict[str, jax.Array]
Collections = dict[str, Any]


def accumulate(
    objective: Objective,
    state: State,
    batch: Batch,
    keys: Key[Array, " B"],
    microbatches: int,
    trained: Any = None,
) -> tuple[Any, Metrics, Collections]:
    """Gradients, metrics and new collections of a global batch.

    Each term is divided by its weight over the whole batch from the start, so the
    gradients of microbatches add up to that of the whole, whatever their padding. The
    collections that a microbatch writes are what the next one reads.

    Args:
      objective: what is minimized.
      state: its parameters and collections.
      batch: the global batch.
      keys: one for each row.
      microbatches: how many pieces to compute it in.
      trained: the parameters that gradients are taken of, see
        `fmjax.optim.parametrization`; all of them if not given.

    Returns:
      Gradients like `trained`; metrics; all of `state.extra` after the batch.
    """
    weights = objective.weights(batch)
    trained = state.params if trained is None else trained

    def variables(trained, extra):
        return {"params": combine(trained, state.params), **extra}

    def weighted(out: LossOutput, extra: Collections):
        """The value to differentiate, and (what adds up, what replaces)."""
        if out.terms.keys() - weights.keys():
            raise ValueError(
                f"{type(objective).__name__}.loss has the terms {[*out.terms]}, its "
                f"weights are of {[*weights]}; expected the same."
            )
        sums = {name: term.coefficient * term.sum for name, term in out.terms.items()}
        added = (sums, dict(out.metrics))
        return total(out.terms, weights), (added, _updated(extra, out.collections))

    through_embeddings = microbatches > 1 and isinstance(objective, EmbeddingObjective)
    add_up = _through_embeddings if through_embeddings else _piece_by_piece
    (value, ((sums, metrics), extra)), grads = add_up(
        objective, variables, weighted, trained, state.extra, batch, keys, microbatches
    )
    found = {"loss": value, objective.unit: next(iter(weights.values()))}
    for name in sums:
        found[name] = sums[name] / jnp.maximum(weights[name], 1e-9)
    for name, ratio in metrics.items():
        found[name] = ratio.sum / jnp.maximum(ratio.weight, 1e-9)
    return grads, found, extra


def _piece_by_piece(
    objective, variables, weighted, trained, extra, batch, keys, microbatches
):
    """Of a loss that is a sum over rows."""

    def loss(trained, extra, batch, keys):
        return weighted(objective.loss(variables(trained, extra), batch, keys), extra)

    return _sum_over_pieces(loss, trained, extra, (batch, keys), microbatches)


def _through_embeddings(
    objective, variables, weighted, trained, extra, batch, keys, microbatches
):
    """Of a loss that compares every row with all others (Gao et al. 2021, GradCache).

    All rows are embedded first; the gradients of their embeddings, taken at once, are
    then led back through each piece, whose forward pass is done again by the same keys
    and from the same collections.
    """

    def embed(extra, piece):
        embeddings, out = objective.embed(variables(trained, extra), *piece)
        return _updated(extra, out.collections), embeddings

    def of_all(trained, embeddings):
        read = variables(trained, embedded)
        return weighted(
            objective.loss_from_embeddings(read, embeddings, batch, keys), embedded
        )

    def of_piece(trained, extra, batch, keys, gradients):
        embeddings, out = objective.embed(variables(trained, extra), batch, keys)
        value, (added, extra) = weighted(out, extra)
        products = jax.tree.map(jnp.vdot, embeddings, gradients)
        return value + sum(jax.tree.leaves(products)), ((value, added), extra)

    pieces = jax.tree.map(lambda x: split_rows(x, microbatches), (batch, keys))
    embedded, embeddings = jax.lax.scan(embed, extra, pieces)
    embeddings = jax.tree.map(_join_rows, embeddings)
    gradient = jax.value_and_grad(of_all, (0, 1), has_aux=True)
    (value, ((sums, metrics), extra_after)), (grads, gradients) = gradient(
        trained, embeddings
    )
    (_, ((other, (more_sums, more_metrics)), _)), more_grads = _sum_over_pieces(
        of_piece, trained, extra, (batch, keys, gradients), microbatches
    )
    added = (more_sums | sums, more_metrics | metrics)
    grads = jax.tree.map(jnp.add, grads, more_grads)
    return (value + other, (added, extra_after)), grads


def _sum_over_pieces(loss: Callable, trained, extra, arrays, microbatches: int):
    """What `value_and_grad` of a loss gives, over pieces of the rows of `arrays`.

    Args:
      loss: (trained, extra, *pieces) → value, (what adds up, the next extra).
      trained: what gradients are taken of.
      extra: collections that the first piece reads.
      arrays: trees of arrays [B, …].
      microbatches: how many pieces.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
        return gradient(trained, extra, *arrays)

    def add(carry, piece):
        sums, extra = carry
        (value, (added, extra)), grads = gradient(trained, extra, *piece)
        return (jax.tree.map(jnp.add, sums, ((value, added), grads)), extra), None

    pieces = jax.tree.map(lambda x: split_rows(x, microbatches), arrays)
    first = jax.tree.map(lambda x: x[0], pieces)
    (value, (added, _)), grads = jax.eval_shape(gradient, trained, extra, *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), ((value, added), grads))
    (((value, added), grads), extra), _ = jax.lax.scan(add, (zeros, extra), pieces)
    return (value, (added, extra)), grads


def _updated(extra: Collections, new: Mapping[str, Any]) -> Collections:
    """The collections with those that a loss gave in their places."""
    for name, tree in new.items():
        shapes = [jax.eval_shape(lambda tree: tree, t) for t in (extra.get(name), tree)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the loss gives a collection {name!r} of {shapes[1]}; expected what "
                f"the objective's init makes, {shapes[0]}."
            )
    return {**extra, **new}


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
