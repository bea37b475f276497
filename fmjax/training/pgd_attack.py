"""Projected gradient descent on inputs, in training and against what is trained."""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.objectives.attack import Deltas, Input, Norm, Per, ascent, project, within


@configurable("pgd_attack")
@dataclasses.dataclass(frozen=True)
class PGDAttack:
    """Projected gradient descent against a trained model (Madry et al. 2018).

    Each step raises the loss of a row, and the result is projected on a ball; pixels
    are then clipped to their range. It starts at the input itself.

    Attributes:
      radius: the largest norm of a perturbation, in units of word vectors as they are
        in the table, or of normalized pixels.
      steps: number of steps.
      step_size: norm of a step; 2.5 · radius / steps if None.
      norm: "l2", or "linf" for a bound of each entry.
      per: whether the norm is of a whole "row", a text or an image, or of each
        "token"; the same for "linf".
    """

    radius: float = 1.0
    steps: int = 10
    step_size: float | None = None
    norm: Norm = "l2"
    per: Per = "row"

    def __post_init__(self):
        require(self, "radius", self.radius > 0, "more than 0")
        require(self, "steps", self.steps >= 1, "at least 1")
        size = self.step_size
        require(self, "step_size", size is None or size > 0, "more than 0, or None")

    def __call__(
        self,
        gradient: Callable[[Deltas], Deltas],
        start: Deltas,
        steps: int,
        inputs: Mapping[str, Input],
    ) -> Deltas:
        """The perturbations after a number of steps.

        Args:
          gradient: of the loss, at given perturbations.
          start: the first perturbations.
          steps: number of steps.
          inputs: what is perturbed.
        """

        def step(deltas, _):
            return self.step(deltas, gradient(deltas), inputs), None

        deltas, _ = jax.lax.scan(step, start, length=steps)
        return deltas

    def step(
        self, deltas: Deltas, gradients: Deltas, inputs: Mapping[str, Input]
    ) -> Deltas:
        """The perturbations of `inputs` one step on, with the gradients there."""
        size = self.step_size or 2.5 * self.radius / self.steps
        moves = ascent(gradients, self.norm, self.per)
        moved = jax.tree.map(lambda x, move: x + size * move, deltas, moves)
        return within(project(moved, self.radius, self.norm, self.per), inputs)
