"""Accuracy on a validation split whose inputs an attack perturbs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError
from fmjax.objectives.attack import (
    PixelRange,
    find_inputs,
    no_perturbation,
    perturb,
)
from fmjax.objectives.classification import Classification
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import total
from fmjax.sharding.mesh import batch_sharding, global_batch, local_rows
from fmjax.sharding.rules import LogicalRules
from fmjax.sharding.xla_options import Changes, compiled_with, xla_options
from fmjax.training.evaluate import evaluate
from fmjax.training.experiment import EvaluationPoint, Experiment, Found
from fmjax.training.pgd_attack import PGDAttack


@configurable("robust_accuracy")
@dataclasses.dataclass(frozen=True)
class RobustAccuracy:
    """Robust accuracy: that on the validation split, each row of which is attacked.

    Attributes:
      attack: perturbs word vectors, or normalized pixels within their range.
      max_batches: batches of the split that are read; None for all.
      every_validation: whether after each validation, or after the last step alone.
    """

    attack: PGDAttack = PGDAttack()
    max_batches: int | None = runtime_field(None)
    every_validation: bool = runtime_field(False)

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError if the objective has no accuracy."""
        objective = experiment.objective
        if not isinstance(objective, LabelObjective | Classification) or (
            getattr(objective, "output", "") == "regression"
        ):
            raise UserError(
                "experiment.evaluations has @robust_accuracy(), but "
                f"@{objective.gin_name}() predicts no classes; expected "
                "@text_classification(), @token_classification() or @classification()."
            )

    def __call__(self, experiment: Experiment, at: EvaluationPoint) -> Found:
        """ "robust_accuracy" and "robust_loss", see `measure_robustness`."""
        if not (at.last or self.every_validation) or not at.metrics:
            return {}
        mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
        found = measure_robustness(self, experiment, at.variables, mesh, rules)
        return {**found}


def measure_robustness(
    how: RobustAccuracy,
    experiment: Experiment,
    variables: Mapping[str, Any],
    mesh: Mesh,
    rules: LogicalRules,
) -> dict[str, float]:
    """Attacks the validation split, on the mesh of the variables.

    Args:
      how: the attack.
      experiment: with an objective that has an accuracy.
      variables: {"params": …, other collections}.
      mesh: of the variables.
      rules: logical to mesh axes.

    Returns:
      "robust_accuracy" and "robust_loss".
    """
    objective, run = experiment.objective, experiment.train
    size = run.eval_batch_size or run.batch_size
    sharding = batch_sharding(mesh, rules)
    values = evaluate(
        _attacked_step(
            objective, how.attack, experiment.pixel_range, mesh, run.xla_options
        ),
        dict(variables),
        experiment.data.eval_batches(
            size, local_rows(sharding, size), max_batches=how.max_batches
        ),
        lambda batch: global_batch(batch, sharding, size),
        objective.unit,
    )
    return {f"robust_{name}": values[name] for name in ("accuracy", "loss")}


@functools.lru_cache(maxsize=1)
def _attacked_step(
    objective: Objective,
    attack: PGDAttack,
    pixels: PixelRange | None,
    mesh: Mesh,
    options: Changes,
) -> Callable:
    """As `fmjax.training.step.make_eval_step` makes it, of attacked inputs."""
    compiler_options = xla_options(mesh.devices.flat[0], options)

    def step(variables, batch):
        def output(deltas):
            return objective.loss(*perturb(variables, batch, deltas), None)

        with compiled_with(compiler_options):
            inputs = find_inputs(objective, variables, batch, None, pixels)
            gradient = jax.grad(lambda deltas: total(output(deltas).terms))
            start = no_perturbation(inputs)
            out = output(attack(gradient, start, attack.steps, inputs))
        shares = {
            name: (term.coefficient * term.sum, term.weight)
            for name, term in out.terms.items()
        }
        ratios = {name: tuple(ratio) for name, ratio in out.metrics.items()}
        return shares, ratios, next(iter(objective.weights(batch).values()))

    return jax.jit(step, compiler_options=compiler_options)
