"""The engine of a sweep: claims trials, runs them some at a time, and ends them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from optuna.trial import Trial

from fmjax.errors import UserError
from fmjax.launch.exit_codes import UNFINISHED
from fmjax.run.curves import as_number
from fmjax.sweeps.claims import Claims
from fmjax.sweeps.config import SEED, SweepConfig
from fmjax.sweeps.folder import SweepFolder
from fmjax.sweeps.gpus import environment_of
from fmjax.sweeps.results import RUNNING, WAITING, Row, rows_of, shown, write_results
from fmjax.sweeps.space import Point, bindings_of_point, short_names
from fmjax.sweeps.study import Study
from fmjax.sweeps.trial_fields import number_of, point_of, runs_of
from fmjax.sweeps.trial_run import COMMAND, TrialRun

_POLL_SECONDS = 0.2
# Between two looks at what other processes did.
_REFRESH_SECONDS = 2.0
# For the runs to save, once they are told to stop.
_STOP_SECONDS = 120.0
_LONGEST_NAME = 120


class Progress(NamedTuple):
    """A run at work, for the display.

    Attributes:
      name: of its run directory.
      step: updates done.
      validation: (step, metric) of its last validation; None before it.
    """

    name: str
    step: int
    validation: tuple[int, float] | None


@dataclasses.dataclass
class _Active:
    """A trial that this process works on.

    Attributes:
      trial: in the study.
      number: of the trial.
      point: its values.
      queue: seeds whose runs have not begun here.
      runs: of the seeds at work, each with its slot.
      results: of the seeds that have ended.
    """

    trial: Trial
    number: int
    point: Point
    queue: list[int]
    runs: dict[int, tuple[int, TrialRun]] = dataclasses.field(default_factory=dict)
    results: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)


class Engine:
    """Works on the trials of a study until all have ended.

    Args:
      config: of the sweep.
      config_file: of the trials, absolute.
      folder: of the sweep.
      study: with all trials in its queue.
      claims: of this process.
      first_seed: train.seed of the first run of a point.
      trust: whether the config may import code.
      say: called with each line of what happened.
      show: called now and then with the rows and the runs at work.
      command: that runs fmjax.
    """

    def __init__(
        self,
        config: SweepConfig,
        config_file: str,
        folder: SweepFolder,
        study: Study,
        claims: Claims,
        first_seed: int,
        trust: bool,
        say: Callable[[str], None],
        show: Callable[[list[Row], list[Progress]], None],
        command: Sequence[str] = COMMAND,
    ):
        self._config, self._config_file, self._folder = config, config_file, folder
        self._study, self._claims, self._trust = study, claims, trust
        self._seeds = [first_seed + i for i in range(config.seeds)]
        self._say, self._show, self._command = say, show, command
        self._active: list[_Active] = []
        self._shown = self._next_claim = 0.0

    def run(self) -> list[Row]:
        """Works until every trial has ended, also those of other processes.

        Returns:
          The rows of all trials.

        Raises:
          UserError: the first run that ended logs no such metric.
        """
        try:
            while True:
                self._start()
                for active in list(self._active):
                    self._follow(active)
                rows = self._refresh()
                if rows is not None and not self._active and _all_ended(rows):
                    write_results(rows, self._config, self._folder)
                    return rows
                time.sleep(_POLL_SECONDS)
        finally:
            # What is unfinished goes on when the sweep is started again.
            runs = [run for active in self._active for _, run in active.runs.values()]
            for run in runs:
                run.tell_to_stop()
            for run in runs:
                run.end(_STOP_SECONDS)

    def _start(self) -> None:
        """Starts runs until as many work as may at once."""
        while free := self._free_slots():
            found = next(filter(self._may_start, self._active), None)
            if found is None:
                if time.monotonic() < self._next_claim:
                    return
                trial = self._study.claim(self._claims)
                if trial is None:
                    self._next_claim = time.monotonic() + _REFRESH_SECONDS
                    return
                self._take_up(trial)
                continue
            seed = found.queue.pop(0)
            run = self._run_of(found, seed, free[0])
            found.runs[seed] = free[0], run
            if self._study.is_behind(found.trial):
                run.tell_to_stop()  # A process that was killed had begun to.
            run.poll()
            self._say(f"{self._name(found, seed)}: started")

    def _take_up(self, trial: Trial) -> None:
        """Adds a claimed trial to those that this process works on."""
        active = _Active(
            trial, number_of(trial), point_of(trial, self._config), [*self._seeds]
        )
        # By a process that was killed.
        for seed, result in runs_of(trial).items():
            active.results[seed] = {k: v for k, v in result.items() if k != "name"}
        active.queue = [seed for seed in self._seeds if seed not in active.results]
        self._active.append(active)
        self._end_if_done(active)

    def _free_slots(self) -> list[int]:
        taken = {slot for active in self._active for slot, _ in active.runs.values()}
        return [slot for slot in range(self._config.at_once) if slot not in taken]

    def _may_start(self, active: _Active) -> bool:
        """Whether a further run of the trial may start now."""
        if not active.queue:
            return False
        # Trials are judged by their first seed.
        first = self._seeds[0]
        judged = active.queue[0] == first or first in active.results
        return self._config.stopping is None or judged

    def _run_of(self, active: _Active, seed: int, slot: int) -> TrialRun:
        bindings = [*self._config.bindings]
        varied = bindings_of_point(self._config.space, active.point)
        bindings += varied
        if not any(each.partition("=")[0].strip() == SEED for each in varied):
            bindings = [b for b in bindings if b.partition("=")[0].strip() != SEED]
            bindings.append(f"{SEED}={seed}")
        name = self._name(active, seed)
        return TrialRun(
            [self._config_file, *bindings, *(["--trust"] if self._trust else [])],
            self._folder.trials / name,
            self._folder.log(name),
            self._config.metric,
            environment_of(slot, self._config),
            self._command,
        )

    def _follow(self, active: _Active) -> None:
        """Reads how far the runs of a trial are, and ends those that have ended."""
        for seed, (_, run) in list(active.runs.items()):
            # Before its metrics are read, which are then whole.
            code = run.poll()
            run.read()
            if self._config.stopping is not None and seed == self._seeds[0]:
                self._judge(active, run)
            if code is None:
                continue
            del active.runs[seed]
            name = self._name(active, seed)
            if code == 0 and not run.has_metric:
                raise UserError(
                    f"sweep.metric: {name}: {run.missing()} Expected another metric, "
                    "in a sweep of another folder."
                )
            behind = code == UNFINISHED and self._study.is_behind(active.trial)
            if behind:
                value = as_number(run.validations[-1][1])
                result = {"step": run.step, "value": value, "error": ""}
                self._say(f"{name}: stopped at step {run.step:,}, as it fell behind")
            else:
                result = run.result(code)
                self._say_result(name, result)
            result["stopped"] = behind
            active.results[seed] = result
            self._study.keep(active.trial, seed, {"name": name} | result)
            self._end_if_done(active)

    def _judge(self, active: _Active, run: TrialRun) -> None:
        """Reports new validations; tells the run to stop if it fell behind."""
        if self._study.is_behind(active.trial):
            return
        for step, value in run.validations:
            if self._study.report(active.trial, step, value):
                run.tell_to_stop()
                return

    def _say_result(self, name: str, result: dict[str, Any]) -> None:
        if result["error"]:
            log = self._folder.log(name)
            self._say(f"{name}: failed: {result['error']} (all it printed: {log})")
        else:
            self._say(f"{name}: {self._config.metric} {result['value']:.4f}")

    def _end_if_done(self, active: _Active) -> None:
        """Ends a trial whose runs have all ended."""
        results, study = active.results, self._study
        errors = [f"seed {s}: {r['error']}" for s, r in results.items() if r["error"]]
        behind = any(result["stopped"] for result in results.values())
        gives_up = self._config.stopping is not None and (behind or errors)
        if active.runs or not results or (active.queue and not gives_up):
            return
        values = [r["value"] for r in results.values() if not r["error"]]
        if behind:
            study.stop(active.trial)
        elif errors:
            error = "; ".join(errors)
            one = self._config.seeds == 1
            study.fail(active.trial, error.partition(": ")[2] if one else error)
        else:
            study.finish(active.trial, sum(values) / len(values))
        self._active.remove(active)
        self._claims.give_back(active.number)
        self._shown = 0.0

    def _refresh(self) -> list[Row] | None:
        """Shows what is done by all processes; None if that was a moment ago."""
        now = time.monotonic()
        if now - self._shown < _REFRESH_SECONDS:
            return None
        self._shown = now
        rows = rows_of(self._study.trials(), self._config)
        write_results(rows, self._config, self._folder)
        runs = [
            Progress(self._name(active, seed), run.step, run.last_validation)
            for active in self._active
            for seed, (_, run) in active.runs.items()
        ]
        self._show(rows, runs)
        return rows

    def _name(self, active: _Active, seed: int) -> str:
        seed_of = None if self._config.seeds == 1 else seed
        return run_name(active.number, active.point, seed_of)


def run_name(number: int, point: Point, seed: int | None) -> str:
    """The name of a run directory: the trial's number, its values and its seed."""
    parts = [
        f"{name}={shown(point[binding])}"
        for binding, name in short_names(point).items()
    ]
    text = ",".join(parts)
    plain = "".join(c if c.isalnum() or c in "=,._+-" else "_" for c in text)
    of_seed = "" if seed is None else f",seed={seed}"
    return f"{number:04}-{plain[:_LONGEST_NAME]}{of_seed}"


def _all_ended(rows: list[Row]) -> bool:
    return all(row.state not in (RUNNING, WAITING) for row in rows)
