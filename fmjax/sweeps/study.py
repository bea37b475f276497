"""The study of a sweep: its trials in Optuna's storage, which processes may share."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fmjax.errors import UserError
from fmjax.sweeps.claims import Claims
from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.space import Point, distributions, grid_points
from fmjax.sweeps.trial_fields import (
    ERROR,
    NUMBER,
    RUN,
    STOPPED,
    number_of,
    runs_of,
)

DATABASE = "study.db"
# Seconds that a process waits for another one's write to SQLite.
_SQLITE_WAIT = 60.0


class Study:
    """The trials of a sweep.

    Each point is one trial, in the queue from the start; who claims it first draws its
    values. Draws depend on the sweep's seed, the trial's number and, for Bayesian
    search, on the trials before it. Where `sweep.seeds` has grown, a point that had
    ended is a further trial in the storage, with the same number, the values and the
    runs of the one before it.

    Args:
      config: of the sweep.
      folder: of the sweep.
      name: of the study in the storage.
      first_step: of the first decision of ASHA, if trials are stopped.

    Raises:
      UserError: the storage cannot be used.
    """

    def __init__(
        self, config: SweepConfig, folder: pathlib.Path, name: str, first_step: int
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._distributions = distributions(config.space)
        self._storage = _storage(config.storage, folder)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction=config.direction,
            pruner=_pruner(config, first_step),
            load_if_exists=True,
        )

    def fill(self) -> None:
        """Puts the trials that are not there yet into the queue, in order.

        So it does with those that ended with fewer seeds than there are now. One
        process at a time calls this.
        """
        points: list[Point] = [{}] * (self._config.trials or 0)
        if self._config.search == "grid":
            points = grid_points(self._config.space)
        there = {number_of(trial): trial for trial in self.trials()}
        for number, point in enumerate(points):
            if number not in there:
                self._study.enqueue_trial(point, user_attrs={NUMBER: number})
        # One that fell behind, or failed beside others, has not all seeds on purpose.
        if self._config.stopping is not None:
            return
        for number, trial in there.items():
            runs = runs_of(trial)
            if trial.state.is_finished() and len(runs) < self._config.seeds:
                kept = {f"{RUN} {seed}": run for seed, run in runs.items()}
                self._study.enqueue_trial(
                    trial.params, user_attrs={NUMBER: number} | kept
                )

    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers."""
        # In the order in which they were added: the last one of a number has all seeds.
        found = self._study.get_trials(deepcopy=False)
        newest = {number_of(trial): trial for trial in found}
        return [newest[number] for number in sorted(newest)]

    def claim(self, claims: Claims) -> Trial | None:
        """The next trial that no live process works on, with its values drawn.

        Those that a process left unfinished come first.

        Returns:
          None if there is none at the moment.
        """
        trials = self.trials()
        for state in (TrialState.RUNNING, TrialState.WAITING):
            for trial in trials:
                if trial.state == state and claims.take(number_of(trial)):
                    if begun := self._begin(trial):
                        return begun
                    claims.give_back(number_of(trial))
        return None

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Records the metric at a step; whether the trial is to end there."""
        if step in self._frozen(trial).intermediate_values:
            return False  # It was judged before a kill.
        trial.report(value, step)
        behind = trial.should_prune()
        if behind:
            trial.set_user_attr(STOPPED, True)
        return behind

    def is_behind(self, trial: Trial) -> bool:
        """Whether `report` has said that the trial is to end."""
        return trial.user_attrs.get(STOPPED, False)

    def keep(self, trial: Trial, seed: int, result: Mapping[str, Any]) -> None:
        """Keeps the result of a seed's run: JSON."""
        trial.set_user_attr(f"{RUN} {seed}", dict(result))

    def finish(self, trial: Trial, value: float) -> None:
        """Ends a trial with its result."""
        self._study.tell(trial, value)

    def stop(self, trial: Trial) -> None:
        """Ends a trial that fell behind."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, error: str) -> None:
        """Ends a trial that failed."""
        trial.set_user_attr(ERROR, error)
        self._study.tell(trial, state=TrialState.FAIL)

    def close(self) -> None:
        """Closes the connections to the storage."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _begin(self, waiting: FrozenTrial) -> Trial | None:
        """A claimed trial with its values; None if it has been finished meanwhile."""
        now = self._storage.get_trial(waiting._trial_id).state
        if now == TrialState.WAITING:
            self._storage.set_trial_state_values(
                waiting._trial_id, state=TrialState.RUNNING
            )
        elif now != TrialState.RUNNING:
            return None
        self._study.sampler = self._sampler(number_of(waiting))
        trial = Trial(self._study, waiting._trial_id)
        for name, distribution in self._distributions.items():
            trial._suggest(name, distribution)
        return trial

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._storage.get_trial(trial._trial_id)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        # One for each trial, so that a process that continues the sweep draws what the
        # one before it would have drawn.
        text = f"{self._config.seed} {number}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "little")
        if self._config.search == "bayesian":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def _pruner(config: SweepConfig, first_step: int) -> optuna.pruners.BasePruner:
    if config.stopping is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=first_step, reduction_factor=config.stopping.reduction_factor
    )


def _storage(url: str | None, folder: pathlib.Path) -> optuna.storages.RDBStorage:
    address = url or f"sqlite:///{folder / DATABASE}"
    wait = {"connect_args": {"timeout": _SQLITE_WAIT}}
    options = wait if address.startswith("sqlite:") else {}
    try:
        return optuna.storages.RDBStorage(address, engine_kwargs=options)
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"sweep.storage: {lines[0]} Expected a database as SQLAlchemy's URL, such "
            "as postgresql://HOST/DATABASE, whose driver is installed; or None."
        ) from error
