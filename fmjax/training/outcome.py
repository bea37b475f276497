"""How training ended."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from fmjax.training.reporting import metrics
from fmjax.training.state import State

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `fmjax.training.train.train` ended.

    Attributes:
      step: updates done.
      finished: whether all updates are done; otherwise the run was interrupted.
      state: the state at that step.
      validation: loss and metrics of the last evaluation; empty if there was none.
      run_dir: the run directory.
    """

    step: int
    finished: bool
    state: State = dataclasses.field(repr=False)
    validation: dict[str, float]
    run_dir: pathlib.Path

    @property
    def metrics(self) -> "pandas.DataFrame":
        """The lines of the run's metrics.jsonl, a column for each field."""
        return metrics.frame(self.run_dir)
