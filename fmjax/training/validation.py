"""The validation split of a run, evaluated with its own mesh and batches."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.sharding.mesh import global_batch, local_rows
from fmjax.training.evaluate import evaluate
from fmjax.training.step import make_eval_step

Found = dict[str, float | str | np.ndarray]
# (step, variables, whether it is the last) → figures to log, texts and pictures (uint8
# [H, W, 3]) to show.
Evaluation = Callable[[int, dict, bool], Found]


class Validation:
    """Evaluates variables on the validation split, and in whatever ways besides.

    Args:
      experiment: the run's, for its data, its objective and train.eval_batches.
      sharding: of a batch.
      batch_size: rows of the global batch.
      evaluations: what else to find out.
    """

    def __init__(
        self,
        experiment: Any,
        sharding: jax.sharding.NamedSharding,
        batch_size: int,
        evaluations: Sequence[Evaluation],
    ):
        self._data, self._unit = experiment.data, experiment.objective.unit
        self._step = make_eval_step(experiment.objective)
        self._sharding, self._size = sharding, batch_size
        self._max_batches = experiment.train.eval_batches
        self._evaluations = evaluations

    def __call__(
        self, step: int, variables: dict, last: bool
    ) -> tuple[dict[str, float], Found]:
        """(loss and metrics, what the evaluations found).

        The last validation reads the whole split, others train.eval_batches. The loss
        and metrics are what `evaluate` gives, and the "seconds" that it took.
        """
        split = self._data.eval_batches(
            self._size,
            local_rows(self._sharding, self._size),
            max_batches=None if last else self._max_batches,
        )
        began = time.perf_counter()
        values = evaluate(
            self._step,
            variables,
            split,
            lambda batch: global_batch(batch, self._sharding, self._size),
            self._unit,
        )
        values["seconds"] = time.perf_counter() - began
        found: Found = {}
        for evaluation in self._evaluations:
            found |= evaluation(step, variables, last)
        return values, found
