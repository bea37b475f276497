"""Early stopping: the evaluations of a run, the best of them, and when to stop."""

import math
import pathlib

from fmjax.training.reporting import metrics
from fmjax.training.train_config import TrainConfig


class EarlyStopping:
    """The values of train.best_metric by step, as metrics.jsonl has them.

    What it decides is a function of the values up to a step, so that a run that is
    resumed decides as one that was never stopped.

    Args:
      run: has patience, best_metric and best_mode.
      run_dir: whose metrics are read.
    """

    def __init__(self, run: TrainConfig, run_dir: pathlib.Path):
        self._patience, self._name = run.patience, run.best_metric
        self._sign = 1 if run.best_mode == "min" else -1
        self._values = metrics.values(run_dir, "validation", run.best_metric)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Records the values of an evaluation, unless the step has had one."""
        value = values.get(self._name)
        if value is not None and math.isfinite(value):
            self._values.setdefault(step, value)

    def known(self, step: int) -> bool:
        """Whether there has been an evaluation at a step."""
        return step in self._values

    def forget_after(self, step: int) -> None:
        """Forgets evaluations of later steps, to which the run has gone back."""
        self._values = {s: x for s, x in self._values.items() if s <= step}

    def best(self, step: int) -> int | None:
        """The step of the best value up to a step, of equals the first."""
        known = sorted(s for s in self._values if s <= step)
        return min(known, key=lambda s: self._sign * self._values[s], default=None)

    def over(self, step: int) -> bool:
        """Whether as many evaluations as the patience allows were none better."""
        if self._patience is None or (best := self.best(step)) is None:
            return False
        return sum(best < s <= step for s in self._values) >= self._patience

    def describe(self, step: int) -> str:
        """Why the run stops at a step."""
        best = self.best(step)
        return (
            f"stopped early at step {step}: no {self._name} better than "
            f"{self._values[best]:.5g}, of step {best}, in {self._patience} "
            "evaluations (train.patience)"
        )
