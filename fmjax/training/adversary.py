"""Adversarial training: gradients of losses of perturbed word vectors or pixels."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.objectives.attack import (
    Deltas,
    Input,
    Norm,
    Per,
    ascent,
    no_perturbation,
    project,
    random_perturbation,
    within,
)
from fmjax.objectives.objective import EmbeddingObjective, Objective
from fmjax.objectives.terms import Ratio
from fmjax.training.pgd_attack import PGDAttack

# ((loss, ((sums, metrics), collections)), gradients), as of `jax.value_and_grad`.
Found = tuple[tuple[Array, Any], Any]


class Attacked(NamedTuple):
    """The loss of a microbatch, as an adversary sees it.

    Every pass has the same keys, so the same dropout.

    Attributes:
      objective: whose loss it is.
      inputs: what may be perturbed.
      loss: (trained parameters, perturbations) → the microbatch's part of the loss of
        the global batch, and ((sums, metrics), collections).
      logits: (trained parameters, perturbations) → predictions, if the objective
        predicts labels.
      mean: (a number for each row [B, …]) → the microbatch's part of its mean over the
        global batch, by the weights of rows.
      keys: one key per row.
      share: 1 / number of microbatches.
    """

    objective: Objective
    inputs: dict[str, Input]
    loss: Callable[[Any, Deltas], tuple[Array, Any]]
    logits: Callable[[Any, Deltas], Array]
    mean: Callable[[Array], Float[Array, ""]]
    keys: Key[Array, " B"]
    share: float

    def of_both(self, trained: Any, deltas: Deltas) -> Found:
        """The loss, and its gradients by the parameters and by the perturbations."""
        return jax.value_and_grad(self.loss, (0, 1), has_aux=True)(trained, deltas)

    def of_parameters(self, trained: Any, deltas: Deltas) -> Found:
        """The loss, and its gradient by the parameters."""
        return jax.value_and_grad(self.loss, has_aux=True)(trained, deltas)

    def of_deltas(self, trained: Any, deltas: Deltas) -> Deltas:
        """The gradient by the perturbations."""
        return jax.grad(self.loss, 1, has_aux=True)(trained, deltas)[0]


@dataclasses.dataclass(frozen=True)
class Adversary(abc.ABC):
    """Perturbs inputs in training so that a model becomes robust, or generalizes.

    Perturbed are word vectors as they are in the table, never those of padding, or
    the pixels of images, which stay within black and white. Evaluation is not
    perturbed; see @robust_accuracy().
    """

    gin_name: ClassVar[str]

    @abc.abstractmethod
    def gradients(self, attacked: Attacked, trained: Any) -> Found:
        """The loss that is minimized, and its gradient, as of `jax.value_and_grad`."""

    def check(self, objective: Objective, microbatches: int) -> None:
        """Raises a UserError for a run that it cannot be part of."""
        if isinstance(objective, EmbeddingObjective) and microbatches > 1:
            raise UserError(
                f"experiment.adversary = @{self.gin_name}(), train.microbatches = "
                f"{microbatches}: the loss of @{objective.gin_name}() compares the "
                "rows of all microbatches; expected 1."
            )


@configurable("fgm")
@dataclasses.dataclass(frozen=True)
class FGM(Adversary):
    """Fast gradient method (Miyato et al. 2017): a step along the normalized gradient.

    The loss is the sum of those without and with the perturbation, each by its weight.
    With norm = 'linf' it is the fast gradient sign method (Goodfellow et al. 2015).

    Attributes:
      radius: norm ε of the perturbation, in units of word vectors as they are in the
        table, or of normalized pixels.
      norm: "l2", or "linf" for the same size of each entry.
      per: whether the norm is of a whole "row", a text or an image, or of each "token".
      clean_weight: of the loss of inputs that are not perturbed.
    """

    radius: float = 1.0
    norm: Norm = "l2"
    per: Per = "row"
    clean_weight: float = 1.0

    def __post_init__(self):
        require(self, "radius", self.radius > 0, "more than 0")
        require(self, "clean_weight", self.clean_weight >= 0, "at least 0")

    def gradients(self, attacked: Attacked, trained: Any) -> Found:
        """Two passes."""
        clean, grads = attacked.of_both(trained, no_perturbation(attacked.inputs))
        moves = ascent(grads[1], self.norm, self.per)
        deltas = jax.tree.map(lambda x: self.radius * x, moves)
        deltas = within(deltas, attacked.inputs)
        found = attacked.of_parameters(trained, deltas)
        return _joined(self.clean_weight, (clean, grads[0]), found, attacked.share)


@configurable("pgd")
@dataclasses.dataclass(frozen=True)
class PGD(Adversary):
    """Projected gradient descent (Madry et al. 2018): training on its perturbations.

    The loss is the sum of those without and with the perturbation, each by its weight;
    with clean_weight = 0, as in the paper, that of the perturbation alone.

    Attributes:
      attack: makes the perturbation.
      random_start: whether it starts from noise instead of the input.
      clean_weight: of the loss of inputs that are not perturbed.
    """

    attack: PGDAttack = PGDAttack(steps=3)
    random_start: bool = False
    clean_weight: float = 1.0

    def __post_init__(self):
        require(self, "clean_weight", self.clean_weight >= 0, "at least 0")

    def gradients(self, attacked: Attacked, trained: Any) -> Found:
        """One pass more than steps; with a random start two more, or one."""
        attack, inputs, steps = self.attack, attacked.inputs, self.attack.steps
        start, clean = no_perturbation(inputs), None
        if not self.random_start:
            clean, grads = attacked.of_both(trained, start)
            clean, start = (clean, grads[0]), attack.step(start, grads[1], inputs)
            steps -= 1
        else:
            if self.clean_weight:
                clean = attacked.of_parameters(trained, start)
            start = random_perturbation(
                inputs, attacked.keys, attack.radius, attack.norm
            )
        deltas = attack(lambda x: attacked.of_deltas(trained, x), start, steps, inputs)
        found = attacked.of_parameters(trained, deltas)
        if clean is None:
            return found
        return _joined(self.clean_weight, clean, found, attacked.share)


@configurable("freelb")
@dataclasses.dataclass(frozen=True)
class FreeLB(Adversary):
    """FreeLB (Zhu et al. 2020): the mean loss along the steps of an attack.

    Each of K passes gives gradients of the parameters, which are averaged, and of the
    perturbation, which makes a step of a given norm in each row and is projected.

    Attributes:
      steps: K.
      step_size: norm of a step, in units of word vectors as they are in the table.
      initial_size: of the first perturbation, U(-1, 1) · initial_size / √(T · D).
      radius: the largest norm of a row's perturbation; None for no limit.
    """

    steps: int = 3
    step_size: float = 0.1
    initial_size: float = 0.1
    radius: float | None = None

    def __post_init__(self):
        require(self, "steps", self.steps >= 1, "at least 1")
        require(self, "step_size", self.step_size > 0, "more than 0")
        require(self, "initial_size", self.initial_size >= 0, "at least 0")
        fits = self.radius is None or self.radius > 0
        require(self, "radius", fits, "more than 0, or None")

    def gradients(self, attacked: Attacked, trained: Any) -> Found:
        """K passes."""

        def step(carry, _):
            deltas, sums = carry
            found, (grads, into_deltas) = attacked.of_both(trained, deltas)
            moves = ascent(into_deltas, "l2", "row")
            deltas = jax.tree.map(
                lambda x, move: x + self.step_size * move, deltas, moves
            )
            if self.radius is not None:
                deltas = project(deltas, self.radius, "l2", "row")
            deltas = within(deltas, attacked.inputs)
            value, (added, extra) = found
            sums = jax.tree.map(jnp.add, sums, (value, added, grads))
            return (deltas, sums), extra

        start = random_perturbation(
            attacked.inputs, attacked.keys, self.initial_size, "l2"
        )
        (value, (added, _)), grads = jax.eval_shape(
            attacked.of_parameters, trained, start
        )
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), (value, added, grads)
        )
        (_, sums), extras = jax.lax.scan(step, (start, zeros), length=self.steps)
        value, added, grads = jax.tree.map(lambda x: x / self.steps, sums)
        return (value, (added, jax.tree.map(lambda x: x[-1], extras))), grads


def _joined(weight: float, clean: Found, adversarial: Found, share: float) -> Found:
    """The weighted sum of two losses; terms, metrics and collections of the first.

    The second loss is the metric "adversarial_loss".
    """
    (value, ((sums, metrics), extra)), grads = clean
    (other, _), more = adversarial
    grads = jax.tree.map(lambda x, y: weight * x + y, grads, more)
    metrics = metrics | {"adversarial_loss": Ratio(other, jnp.float32(share))}
    return (weight * value + other, ((sums, metrics), extra)), grads
