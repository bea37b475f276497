"""The configuration of a sweep, which a gin file binds."""

import dataclasses
from typing import Literal

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError, require
from fmjax.sweeps.space import Axis, Range, Value, Variants, choices_of

SEED = "train.seed"


@configurable("asha")
@dataclasses.dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving (Li et al. 2020): ends runs that fall behind.

    At first_step · reduction_factor^k steps, k = 0, 1, …, a run goes on only if its
    metric is among the best 1 / reduction_factor of the trials that came so far. With
    several seeds a trial is judged by its first one; the others begin when that one has
    ended.

    Attributes:
      first_step: step of the first decision; None for the first validation,
        train.eval_every.
      reduction_factor: of the trials, one of so many goes on.
    """

    first_step: int | None = None
    reduction_factor: int = 4

    def __post_init__(self):
        first = self.first_step
        require(self, "first_step", first is None or first >= 1, "at least 1, or None")
        require(self, "reduction_factor", self.reduction_factor >= 2, "at least 2")


@configurable("sweep")
@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Runs of one config at the points of a space.

    Attributes:
      config: gin file of a trial: a path, from the folder of the sweep's file or from
        the working directory, or a name under configs/.
      bindings: NAME=VALUE of every trial.
      space: binding → the values to try, or a range that values are drawn from. A
        string is read as on the command line: '@linear()' is a schedule. Or a name of
        your own → variants of several bindings each.
      search: "grid" for every combination of the values, "random" for independent
        draws, "bayesian" for Optuna's tree-structured Parzen estimator (Bergstra et al.
        2011), which draws where earlier trials were good.
      trials: number of points; of a grid None.
      seeds: runs of each point, with train.seed, train.seed + 1, …; the trial's result
        is their mean.
      metric: of the last validation, as in metrics.jsonl.
      direction: "minimize" or "maximize" the metric.
      seed: of the draws of "random" and "bayesian".
      stopping: ends runs that fall behind; None lets all come to their end.
      at_once: number of runs at a time, of this process.
      gpus_per_run: CUDA devices of each run, of those that this process sees; None for
        all of them.
      storage: Optuna's storage as SQLAlchemy's URL, such as postgresql://…, for many
        machines; None for SQLite in the sweep's folder. Its password belongs into
        the database's own files, such as ~/.pgpass.
    """

    config: str
    space: dict[str, tuple[Value, ...] | Range | Variants]
    bindings: tuple[str, ...] = ()
    search: Literal["grid", "random", "bayesian"] = "grid"
    trials: int | None = None
    seeds: int = 1
    metric: str = "loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    seed: int = 0
    stopping: Asha | None = None
    at_once: int = runtime_field(1)
    gpus_per_run: int | None = runtime_field(None)
    storage: str | None = runtime_field(None)

    def __post_init__(self):
        require(self, "space", bool(self.space), "at least one binding to vary")
        for name, values in self.space.items():
            self._check_values(name, values)
        is_grid = self.search == "grid"
        if is_grid and self.trials is not None:
            raise UserError(
                f"sweep.trials = {self.trials}: expected None with sweep.search = "
                "'grid', which tries every combination once."
            )
        if not is_grid:
            many = self.trials is not None and self.trials >= 1
            require(self, "trials", many, f"at least 1 with search = {self.search!r}")
        require(self, "seeds", self.seeds >= 1, "at least 1")
        require(self, "at_once", self.at_once >= 1, "at least 1")
        gpus = self.gpus_per_run
        require(self, "gpus_per_run", gpus is None or gpus >= 1, "at least 1, or None")
        varied = self._varied()
        if twice := [name for name in varied if varied.count(name) > 1]:
            raise UserError(
                f"sweep.space: two of its names vary {twice[0]}; expected one."
            )
        if SEED in varied and self.seeds > 1:
            raise UserError(
                f"sweep.seeds = {self.seeds}, and sweep.space varies {SEED}; expected "
                "one of the two."
            )
        for binding in self.bindings:
            name = binding.partition("=")[0].strip()
            if "=" not in binding:
                raise UserError(f"sweep.bindings: {binding!r}; expected NAME=VALUE.")
            if name in varied:
                raise UserError(
                    f"sweep.bindings: {binding!r}, and sweep.space varies {name}; "
                    "expected one of the two."
                )

    def _varied(self) -> list[str]:
        """The bindings that the space varies, those of an axis once each."""
        names: list[str] = []
        for name, axis in self.space.items():
            if isinstance(axis, dict):
                every = [b.partition("=")[0].strip() for v in axis.values() for b in v]
                names += dict.fromkeys(every)
            else:
                names.append(name)
        return names

    def _check_values(self, name: str, values: Axis) -> None:
        if isinstance(values, Range):
            if self.search == "grid":
                raise UserError(
                    f"sweep.space: {name} has @{values.gin_name}(), which a grid "
                    "cannot try exhaustively; expected a list of values, or "
                    "sweep.search = 'random' or 'bayesian'."
                )
            return
        if isinstance(values, dict):
            if "." in name:
                raise UserError(
                    f"sweep.space: {name!r} has variants; expected a name of your own "
                    "without a dot, such as 'positions'."
                )
            for binding in (b for variant in values.values() for b in variant):
                if "=" not in binding:
                    raise UserError(f"sweep.space: {binding!r}; expected NAME=VALUE.")
        texts = choices_of(values)
        if not texts:
            raise UserError(f"sweep.space: {name} = (); expected at least one value.")
        if len({*texts}) < len(texts):
            raise UserError(
                f"sweep.space: {name} has a value twice ({', '.join(texts)}); expected "
                "each once. For several runs of a point use sweep.seeds."
            )

    @property
    def is_better(self) -> int:
        """-1 where smaller is better, else 1."""
        return -1 if self.direction == "minimize" else 1
