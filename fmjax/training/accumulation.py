"""Gradient accumulation: gradients of a global batch from one or more microbatches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Key

from fmjax.objectives.attack import PixelRange, find_inputs, perturb
from fmjax.objectives.objective import EmbeddingObjective, Objective
from fmjax.objectives.terms import Batch, LossOutput, total
from fmjax.optim.parametrization import combine
from fmjax.training.adversary import Adversary, Attacked
from fmjax.training.noise_scale import sums_of_microbatch
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
    noise_scale: bool = False,
    adversary: Adversary | None = None,
    pixels: PixelRange | None = None,
) -> tuple[Any, Metrics, Collections]:
    """Gradients, metrics and new collections of a global batch.

    Each term is divided by its weight over the global batch, not over a microbatch, so
    the gradients of the microbatches add up to the gradient of the global batch however
    padding is distributed. A microbatch reads the collections that the one before it
    wrote.

    Args:
      objective: what is minimized.
      state: holds the parameters and collections.
      batch: the global batch, arrays [B, …].
      keys: one random key per row.
      microbatches: number of microbatches; must divide B.
      trained: the parameters to differentiate, see `fmjax.optim.parametrization`; None
        for all.
      noise_scale: whether metrics have "noise_scale", the sums of microbatches that
        `fmjax.training.noise_scale` needs.
      adversary: perturbs inputs; None for none.
      pixels: the range of images, for the adversary; None for no bounds.

    Returns:
      Gradients, a tree like `trained`; metrics, float32 scalars by name; all of
      `state.extra` as it is after the batch.

    Raises:
      ValueError: `loss` and `weights` of the objective have different terms.
    """
    weights = objective.weights(batch)
    trained = state.params if trained is None else trained

    def variables(trained, extra):
        return {"params": combine(trained, state.params), **extra}

    def weighted(out: LossOutput, extra: Collections):
        """Loss to differentiate, and (sums to add up, collections to pass on)."""
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
    arguments = (trained, state.extra, batch, keys, microbatches)
    if adversary is not None:
        add_up = functools.partial(_adversarial, adversary, pixels, weights)
    (value, ((sums, metrics), extra)), grads, noise = add_up(
        objective, variables, weighted, *arguments
    )
    found = {"loss": value, objective.unit: next(iter(weights.values()))}
    for name in sums:
        found[name] = sums[name] / jnp.maximum(weights[name], 1e-9)
    for name, ratio in metrics.items():
        found[name] = ratio.sum / jnp.maximum(ratio.weight, 1e-9)
    if noise_scale:
        found["noise_scale"] = noise
    return grads, found, extra


def _piece_by_piece(
    objective, variables, weighted, trained, extra, batch, keys, microbatches
):
    """Gradient accumulation for a loss that is a sum over rows."""

    def loss(trained, extra, batch, keys):
        return weighted(objective.loss(variables(trained, extra), batch, keys), extra)

    return _sum_over_pieces(
        jax.value_and_grad(loss, has_aux=True),
        trained,
        extra,
        (batch, keys),
        microbatches,
        _noise_of(objective),
    )


def _adversarial(
    adversary,
    pixels,
    weights,
    objective,
    variables,
    weighted,
    trained,
    extra,
    batch,
    keys,
    microbatches,
):
    """Gradient accumulation for a loss of perturbed inputs."""
    rows = next(iter(weights.values()))

    def of_loss(trained, extra, batch, keys):
        def loss(trained, deltas):
            read = perturb(variables(trained, extra), batch, deltas)
            return weighted(objective.loss(*read, keys), extra)

        def logits(trained, deltas):
            read = perturb(variables(trained, extra), batch, deltas)
            return objective.predict(*read, keys)

        def mean(values):
            return objective.weighted_sum(values, batch) / jnp.maximum(rows, 1e-9)

        read = variables(trained, extra)
        inputs = find_inputs(objective, read, batch, keys, pixels)
        attacked = Attacked(
            objective, inputs, loss, logits, mean, keys, 1 / microbatches
        )
        return adversary.gradients(attacked, trained)

    return _sum_over_pieces(
        of_loss, trained, extra, (batch, keys), microbatches, _noise_of(objective)
    )


def _noise_of(objective: Objective) -> Callable:
    def noise(grads, batch, keys):
        return sums_of_microbatch(grads, next(iter(objective.weights(batch).values())))

    return noise


def _through_embeddings(
    objective, variables, weighted, trained, extra, batch, keys, microbatches
):
    """Gradient accumulation for a contrastive loss (GradCache, Gao et al. 2021).

    All microbatches are embedded first. The gradients of the loss with respect to all
    embeddings are taken in one step, then backpropagated through each microbatch, whose
    forward pass is repeated with the same keys and collections.
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
    (_, ((other, (more_sums, more_metrics)), _)), more_grads, _ = _sum_over_pieces(
        jax.value_and_grad(of_piece, has_aux=True),
        trained,
        extra,
        (batch, keys, gradients),
        microbatches,
    )
    added = (more_sums | sums, more_metrics | metrics)
    grads = jax.tree.map(jnp.add, grads, more_grads)
    return (value + other, (added, extra_after)), grads, {}


def _sum_over_pieces(
    of_loss: Callable,
    trained,
    extra,
    arrays,
    microbatches: int,
    measure: Callable = lambda grads, *piece: {},
):
    """`value_and_grad` of a loss, summed over microbatches of the rows of `arrays`.

    Args:
      of_loss: (trained, extra, *microbatch) → (value, (sums to add up, the next
        extra)), gradients.
      trained: the parameters to differentiate.
      extra: collections that the first microbatch reads.
      arrays: trees of arrays [B, …].
      microbatches: number of microbatches.
      measure: (gradients, *microbatch) → a tree to add up, too.

    Returns:
      What `value_and_grad` does, and the sum of what is measured.
    """

    def gradient(extra, *piece):
        found, grads = of_loss(trained, extra, *piece)
        return found, grads, measure(grads, *piece)

    if microbatches == 1:
        return gradient(extra, *arrays)

    def add(carry, piece):
        sums, extra = carry
        (value, (added, extra)), *rest = gradient(extra, *piece)
        return (jax.tree.map(jnp.add, sums, [(value, added), *rest]), extra), None

    pieces = jax.tree.map(lambda x: split_rows(x, microbatches), arrays)
    first = jax.tree.map(lambda x: x[0], pieces)
    (value, (added, _)), *rest = jax.eval_shape(gradient, extra, *first)
    shapes = [(value, added), *rest]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (sums, extra), _ = jax.lax.scan(add, (zeros, extra), pieces)
    (value, added), grads, measured = sums
    return (value, (added, extra)), grads, measured


def _updated(extra: Collections, new: Mapping[str, Any]) -> Collections:
    """The collections, with those that the loss returned replaced."""
    for name, tree in new.items():
        shapes = [jax.eval_shape(lambda tree: tree, t) for t in (extra.get(name), tree)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the loss gives a collection {name!r} of {shapes[1]}; expected what "
                f"the objective's init makes, {shapes[0]}."
            )
    return {**extra, **new}


def split_rows(x: jax.Array, pieces: int) -> jax.Array:
    """Splits rows: [B, …] → [pieces, B / pieces, …]; piece i has rows i, i + pieces, ….

    The split is strided so that each device already holds its rows of every piece.
    """
    split = jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0)
    return nn.with_logical_constraint(
        split, (None, "batch") + (None,) * (split.ndim - 2)
    )


def _join_rows(x: jax.Array) -> jax.Array:
    """The inverse of `split_rows`."""
    joined = jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
    return nn.with_logical_constraint(joined, ("batch",) + (None,) * (joined.ndim - 1))
