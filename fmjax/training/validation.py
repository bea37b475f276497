"""Evaluation during training: the validation loss, and further evaluations."""

import time
from collections.abc import Callable

import jax

from fmjax.sharding.mesh import global_batch, local_rows
from fmjax.sharding.xla_options import xla_options
from fmjax.training.evaluate import evaluate
from fmjax.training.experiment import EvaluationPoint, Experiment, Found
from fmjax.training.step import make_eval_step


class Validation:
    """Computes loss and metrics on the validation split.

    Args:
      experiment: the run's; its data, objective and train.eval_batches are used.
      sharding: of a batch.
      batch_size: rows of the global batch.
    """

    def __init__(
        self,
        experiment: Experiment,
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
    experiment: Experiment,
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
