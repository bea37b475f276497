"""The saved step of a run with the best validation."""

import pathlib
from typing import Literal

from fmjax.errors import UserError
from fmjax.run.directory import stored_experiment
from fmjax.training.checkpoint.saved_state import saved_steps
from fmjax.training.reporting import metrics

Step = int | Literal["best"] | None


def chosen_step(run_dir: pathlib.Path, step: Step, trust: bool = False) -> int | None:
    """The step that "best" stands for; others as they are.

    That is the saved step of the best train.best_metric on the validation split.

    Args:
      run_dir: the run directory.
      step: "best", a step, or None for the newest.
      trust: whether the stored config may import code.

    Raises:
      UserError: no saved step has been evaluated.
    """
    if step != "best":
        return step
    run = stored_experiment(run_dir, trust).train
    values = metrics.values(run_dir, "validation", run.best_metric)
    saved = [step for step in saved_steps(run_dir) if step in values]
    if not saved:
        raise UserError(
            f"{run_dir}: no checkpoint has a validation {run.best_metric!r}, so that "
            "none is the best; expected a number of a step, such as that of the newest."
        )
    sign = 1 if run.best_mode == "min" else -1
    return min(saved, key=lambda step: sign * values[step])
