"""The run that is being trained, as a `Run`, for evaluations during training."""

from collections.abc import Mapping
from typing import Any

import jax

from fmjax.errors import UserError
from fmjax.inference.run import Run
from fmjax.training.experiment import Experiment


def current_run(experiment: Experiment, variables: Mapping[str, Any], step: int) -> Run:
    """A run of the variables of an `EvaluationPoint`, on the mesh of the training.

    Args:
      experiment: that is trained.
      variables: {"params": …, other collections}.
      step: updates done.
    """
    return Run(
        config=experiment,
        model=experiment.objective.model,
        params=variables["params"],
        tokenizer=experiment.data.tokenizer(),
        step=step,
        extra={name: x for name, x in variables.items() if name != "params"},
    )


def check_one_process(name: str, option: str) -> None:
    """Raises a UserError in runs of several processes, which have a part of each array.

    Args:
      name: of the evaluation.
      option: of `fmjax eval`, which measures the same after the run.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"experiment.evaluations has @{name}(), which needs a run of one process; "
            f"this one has {jax.process_count()}. Use `fmjax eval RUN_DIR --{option}`."
        )
