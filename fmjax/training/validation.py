"""Evaluation during training: the validation loss, and further evaluations."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import jax
import numpy as np

from fmjax.sharding.mesh import global_batch, local_rows
from fmjax.sharding.xla_options import xla_options
from fmjax.training.evaluate import evaluate
from fmjax.training.step import make_eval_step

if TYPE_CHECKING:
    from fmjax.training.experiment import Experiment

# Numbers to log, texts and pictures (uint8 [H, W, 3]) to show, by name.
Found = dict[str, float | str | np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvaluationPoint:
    """The step, variables and validation metrics that an evaluation is given.

    Attributes:
      step: updates done.
      variables: {"params": …, other collections}; the parameters are averaged if the
        run keeps averages.
      metrics: loss and metrics on the validation split; empty without such a split.
      last: whether the run ends at this step.
    """

    step: int
    variables: dict
    metrics: Mapping[str, float]
    last: bool


class Evaluation(Protocol):
    """Protocol of `experiment.evaluations`: a configurable run after each validation.

    Every process of a run calls it, on the run's mesh. An exception is recorded as an
    event and the run continues; it must be raised in all processes or in none.
    """

    gin_name: ClassVar[str]

    def check(self, experiment: "Experiment") -> None:
        """Raises a UserError if it cannot evaluate such an experiment.

        Called in the first process before anything is compiled or written.
        """

    def __call__(self, experiment: "Experiment", at: EvaluationPoint) -> Found:
        """Evaluates the variables of `at`; returns numbers, texts, pictures by name."""


class Validation:
    """Computes loss and metrics on the validation split.

    Args:
      experiment: the run's; its data, objective and train.eval_batches are used.
      sharding: of a batch.
      batch_size: rows of the global batch.
    """

    def __init__(
        self,
        experiment: "Experiment",
        sharding: jax.sharding.NamedSharding,
        batch_size: int,
    ):
        self._experiment = experiment
        device = sharding.mesh.devices.flat[0]
        options = xla_options(device, experiment.train.xla_options)
        self._step = make_eval_step(experiment.objective, options)
        self._sharding, self._size = sharding, batch_size

    def __call__(self, variables: dict, last: bool) -> dict[str, float]:
        """The results of `evaluate`, and the "seconds" that it took.

        The last validation reads the whole split; others read train.eval_batches of it.
        """
        experiment = self._experiment
        split = experiment.data.eval_batches(
            self._size,
            local_rows(self._sharding, self._size),
            max_batches=None if last else experiment.train.eval_batches,
        )
        began = time.perf_counter()
        values = evaluate(
            self._step,
            variables,
            split,
            lambda batch: global_batch(batch, self._sharding, self._size),
            experiment.objective.unit,
        )
        values["seconds"] = time.perf_counter() - began
        return values


def run_evaluations(
    experiment: "Experiment",
    at: EvaluationPoint,
    failed: Callable[[str, Exception], None],
) -> Found:
    """Runs the experiment's evaluations; returns all their results by name.

    Args:
      experiment: of the run.
      at: the step, variables and validation metrics.
      failed: called with (gin name, exception) for an evaluation that raises.
    """
    found: Found = {}
    for evaluation in experiment.evaluations:
        try:
            found |= evaluation(experiment, at)
        except Exception as error:
            failed(f"@{evaluation.gin_name}()", error)
    return found
