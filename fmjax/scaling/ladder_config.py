"""The configuration of a ladder of runs, which a gin file binds."""

import dataclasses

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError, require


@configurable("ladder")
@dataclasses.dataclass(frozen=True)
class LadderConfig:
    """Runs of several sizes and lengths, a law fitted to them, and a run to predict.

    Attributes:
      config: gin file of a run: a path, from the folder of the ladder's file or from
        the working directory, or a name under configs/. Its learning rate is constant
        before a decay at the end (@warmup_stable_decay()), so that runs of one size
        share a trunk.
      bindings: NAME=VALUE of every run.
      sizes: name → NAME=VALUE of the runs of a size, the smallest first.
      steps: lengths of the runs of each size, in optimizer steps.
      target: NAME=VALUE of the run that is predicted before it is trained.
      target_steps: its length.
      law: form that is fitted, as `fmjax scaling fit --law` has it.
      bootstrap: how many times the runs are resampled for intervals.
      at_once: number of runs at a time.
    """

    config: str
    sizes: dict[str, tuple[str, ...]]
    steps: tuple[int, ...]
    target: tuple[str, ...]
    target_steps: int
    bindings: tuple[str, ...] = ()
    law: str = "hoffmann"
    bootstrap: int = 1000
    at_once: int = runtime_field(1)

    def __post_init__(self):
        for name in self.sizes:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise UserError(
                    f"ladder.sizes: {name!r}; expected names of letters, digits, '-' "
                    "and '_', which become names of folders."
                )
        longer = [a < b for a, b in zip((0, *self.steps), self.steps)]
        require(self, "steps", longer and all(longer), "lengths that increase, above 0")
        require(self, "target_steps", self.target_steps >= 1, "at least 1")
        require(self, "bootstrap", self.bootstrap >= 1, "at least 1")
        require(self, "at_once", self.at_once >= 1, "at least 1")
        for binding in (*self.bindings, *self.target, *sum(self.sizes.values(), ())):
            if "=" not in binding or binding.startswith("train.steps"):
                raise UserError(
                    f"ladder: {binding!r}; expected NAME=VALUE, and lengths as "
                    "ladder.steps and ladder.target_steps."
                )
