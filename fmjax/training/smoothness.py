"""Smoothness of predictions under perturbations: SMART, virtual adversaries."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.dropout import fold_keys
from fmjax.objectives.attack import (
    Deltas,
    Input,
    ascent,
    no_perturbation,
    sizes,
)
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Ratio
from fmjax.training.adversary import Adversary, Attacked, Found


@dataclasses.dataclass(frozen=True)
class _Smoothness(Adversary):
    """Adds to the loss how much predictions change under a perturbation.

    Attributes:
      weight: of the added term.
      steps: number of steps that look for the perturbation.
    """

    weight: float = 1.0
    steps: int = 1

    def __post_init__(self):
        require(self, "weight", self.weight > 0, "more than 0")
        require(self, "steps", self.steps >= 1, "at least 1")

    def check(self, objective: Objective, microbatches: int) -> None:
        """Raises a UserError for an objective that predicts no labels."""
        if not isinstance(objective, LabelObjective):
            raise UserError(
                f"experiment.adversary = @{self.gin_name}() compares predicted labels, "
                f"and @{objective.gin_name}() predicts none; expected "
                "@text_classification() or @token_classification(), or another "
                "adversary, such as @fgm()."
            )

    def gradients(self, attacked: Attacked, trained: Any) -> Found:
        """The loss with the added term, its perturbation found by further passes."""
        nothing = no_perturbation(attacked.inputs)
        found = jax.lax.stop_gradient(attacked.logits(trained, nothing))

        def change(deltas: Deltas) -> Array:
            return self._sought(attacked, found, attacked.logits(trained, deltas))

        deltas = self._first(attacked)
        for _ in range(self.steps):
            deltas = self._next(deltas, jax.grad(change)(deltas))
        deltas = jax.lax.stop_gradient(self._last(deltas))

        def loss(trained):
            value, ((sums, metrics), extra) = attacked.loss(trained, nothing)
            pair = (attacked.logits(trained, x) for x in (nothing, deltas))
            added = self._added(attacked, *pair)
            # For the metric's share see `Ratio`: the parts of microbatches add up.
            ratio = Ratio(added, jnp.float32(attacked.share))
            metrics = metrics | {"smoothness": ratio}
            return value + self.weight * added, ((sums, metrics), extra)

        return jax.value_and_grad(loss, has_aux=True)(trained)

    def _first(self, attacked: Attacked) -> Deltas:
        raise NotImplementedError

    def _next(self, deltas: Deltas, gradients: Deltas) -> Deltas:
        raise NotImplementedError

    def _last(self, deltas: Deltas) -> Deltas:
        return deltas

    def _sought(self, attacked: Attacked, clean: Array, other: Array) -> Array:
        return attacked.mean(divergence(attacked.objective, clean, other))

    def _added(self, attacked: Attacked, clean: Array, other: Array) -> Array:
        raise NotImplementedError


@configurable("smart")
@dataclasses.dataclass(frozen=True)
class SMART(_Smoothness):
    """Smoothness-inducing regularization (SMART, Jiang et al. 2020, equation 2).

    The perturbation starts from normal noise; each step divides δ + step_size · g by
    its largest entry, for each token, as in the authors' code. The term is the
    symmetric divergence KL(p ‖ q) + KL(q ‖ p) of the predictions without and with it,
    or for numbers the squared difference.

    Attributes:
      noise: standard deviation of the noise.
      step_size: of the gradient g.
      radius: the largest entry of a token's perturbation; the paper has 1e-5.
    """

    noise: float = 1e-5
    step_size: float = 1e-3
    radius: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("noise", "step_size", "radius"):
            require(self, name, getattr(self, name) > 0, "more than 0")

    def _first(self, attacked: Attacked) -> Deltas:
        return _normal(attacked, self.noise)

    def _next(self, deltas: Deltas, gradients: Deltas) -> Deltas:
        def move(x: Array, g: Array) -> Array:
            moved = x + self.step_size * g
            size = sizes(moved, "linf", "token")
            return self.radius * moved / jnp.where(size > 0, size, 1.0)

        return jax.tree.map(move, deltas, gradients)

    def _added(self, attacked: Attacked, clean: Array, other: Array) -> Array:
        both = divergence(attacked.objective, clean, other)
        both += divergence(attacked.objective, other, clean)
        return attacked.mean(both)


@configurable("vat")
@dataclasses.dataclass(frozen=True)
class VAT(_Smoothness):
    """Virtual adversarial training (Miyato et al. 2018, algorithm 1).

    Power iteration finds the direction of a row's perturbation that changes its
    prediction most: d ← g / ‖g‖ of the divergence at xi · d. The term is KL(p ‖ q) of
    the predictions without, which take no gradient, and with a perturbation of norm
    radius.

    Attributes:
      radius: norm of a row's perturbation, in units of word vectors as they are in the
        table.
      xi: norm at which the power iteration takes gradients.
    """

    radius: float = 1.0
    xi: float = 1e-2

    def __post_init__(self):
        super().__post_init__()
        for name in ("radius", "xi"):
            require(self, name, getattr(self, name) > 0, "more than 0")

    def _first(self, attacked: Attacked) -> Deltas:
        directions = ascent(_normal(attacked, 1.0), "l2", "row")
        return jax.tree.map(lambda x: self.xi * x, directions)

    def _next(self, deltas: Deltas, gradients: Deltas) -> Deltas:
        del deltas
        return jax.tree.map(lambda x: self.xi * x, ascent(gradients, "l2", "row"))

    def _last(self, deltas: Deltas) -> Deltas:
        return jax.tree.map(lambda x: self.radius / self.xi * x, deltas)

    def _added(self, attacked: Attacked, clean: Array, other: Array) -> Array:
        return self._sought(attacked, jax.lax.stop_gradient(clean), other)


def divergence(
    objective: LabelObjective, clean: Array, other: Array
) -> Float[Array, "B ..."]:
    """KL(p ‖ q) of predictions p and q; for numbers the squared difference.

    Args:
      objective: whose predictions they are.
      clean: logits of p, [B, …, classes].
      other: logits of q.
    """
    output = getattr(objective, "output", "softmax")
    if output == "regression":
        return jnp.square(clean - other).sum(-1)
    if output == "softmax":
        p, q = jax.nn.log_softmax(clean), jax.nn.log_softmax(other)
        return (jnp.exp(p) * (p - q)).sum(-1)
    total = 0.0
    for sign in (1, -1):
        p, q = jax.nn.log_sigmoid(sign * clean), jax.nn.log_sigmoid(sign * other)
        total += (jnp.exp(p) * (p - q)).sum(-1)
    return total


def _normal(attacked: Attacked, std: float) -> Deltas:
    def noise(number: int, each: Input) -> Array:
        keys = fold_keys(attacked.keys, number)
        drawn = jax.vmap(lambda key: jax.random.normal(key, each.shape[1:]))(keys)
        return jnp.where(each.mask[..., None], std * drawn, 0.0)

    inputs = attacked.inputs.items()
    return {path: noise(number, each) for number, (path, each) in enumerate(inputs)}
