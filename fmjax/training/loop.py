"""The parts of the training loop: restore, step, log, save, evaluate, finish."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.data.runtime.batch_source import ObservesParameters
from fmjax.errors import UserError
from fmjax.sharding.mesh import global_batch, local_rows
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.checkpoint.clock import SaveClock
from fmjax.training.checkpoint.saved_state import in_a_line
from fmjax.training.checkpoint.saver import Saver
from fmjax.training.checks import check_same_data
from fmjax.training.describe_run import describe_run
from fmjax.training.early_stopping import EarlyStopping
from fmjax.training.environment import program, versions
from fmjax.training.experiment import EvaluationPoint, Experiment
from fmjax.training.faults.bad_step_log import BadStepLog, Diverged, Rollback
from fmjax.training.faults.device_check import check_devices
from fmjax.training.faults.interruption import Interruption
from fmjax.training.faults.watchdog import Watchdog
from fmjax.training.memory import device_memory_peak
from fmjax.training.noise_scale import NoiseScale, above_critical_batch
from fmjax.training.numbered_batches import next_batch, whole_state
from fmjax.training.outcome import Outcome
from fmjax.training.reporting import events, goodput, metrics, starts
from fmjax.training.reporting.goodput import Clock
from fmjax.training.reporting.profile import StepProfile
from fmjax.training.reporting.reports import Reports
from fmjax.training.reporting.spool import Spool
from fmjax.training.reporting.step_figures import StepFigures
from fmjax.training.reporting.step_log import StepLog
from fmjax.training.reporting.throughput import Utilization
from fmjax.training.reporting.trackers.outbox import Outbox
from fmjax.training.setup import Setup
from fmjax.training.start_from import start_from
from fmjax.training.state import State
from fmjax.training.validation import Validation, run_evaluations

_LINES = 10  # lines of metrics that a short run has at least


class Loop:
    """The state, batches and reports of a run while it trains.

    Args:
      experiment: with data and an optimizer.
      run_dir: the run directory.
      config_text: the whole config, stored with every checkpoint.
      setup: mesh, shardings and state plan, from `set_up`.
      on_hang: called from another thread, with a message, if the run hangs.
      changed_data: resume even if the data changed since the checkpoint.
      clock: of the run.
      spool: of the run's reports.

    Attributes:
      state: after the last step; None before `restore`.
      done: updates done.
      interrupted: whether the run was interrupted, and has saved.
      evaluated: whether the last evaluation of the complete run is done.
      watchdog: a context manager that watches the steps inside it.
    """

    def __init__(
        self,
        experiment: Experiment,
        run_dir: pathlib.Path,
        config_text: str,
        setup: Setup,
        on_hang: Callable[[str], None],
        changed_data: bool,
        clock: Clock,
        spool: Spool,
    ):
        run, data, objective = experiment.train, experiment.data, experiment.objective
        self._experiment, self._run = experiment, run
        self._run_dir, self._config_text = run_dir, config_text
        self._setup, self._changed_data, self._spent = setup, changed_data, clock
        self._spool = spool
        self.state: State | None = None
        self.done, self.interrupted, self.evaluated = 0, False, False
        self._warned = False  # of a batch above the critical one
        self._validation: dict[str, float] = {}
        self._batches = data.train_batches(
            run.batch_size, local_rows(setup.sharding, run.batch_size), run.seed
        )
        self._beginning = self._batches.get_state()
        self._observes = isinstance(data, ObservesParameters)
        self._observed = False
        self._train_rows = data.train_rows()
        self._has_validation = data.has_validation
        utilization = Utilization(
            objective, setup.plan, data.row_shapes(), setup.step.batch, setup.mesh
        )
        self._reports = Reports(
            spool.folder,
            run.steps,
            objective.unit,
            lambda seconds: utilization(seconds, self.done),
            lambda: [
                Outbox(tracker, spool.folder, config_text)
                for tracker in experiment.trackers
            ],
        )
        for line in describe_run(setup, run.xla_options):
            self._reports.say(line)
        if not self._has_validation:
            self._reports.say(
                "the data has no validation split: there will be no validation loss"
            )
        check_devices(setup.mesh)
        self._checkpoints = Checkpoints(
            run_dir,
            keep_last=run.keep_last,
            keep_every=run.keep_every,
            keep_best=run.keep_best,
            values=metrics.values(run_dir, "validation", run.best_metric),
            best_mode=run.best_mode,
            references=setup.references,
            omitted=setup.omitted,
        )
        self._saver = Saver(
            self._checkpoints,
            run.save_attempts,
            run.save_pause_seconds,
            lambda text: self._reports.event("save failed", self.done, text),
        )
        self._stopping = EarlyStopping(run, run_dir)
        self._clock = SaveClock(run.checkpoint_minutes)
        self._profile = StepProfile(spool.folder, run.profile, self._program)
        self._validate = Validation(experiment, setup.sharding, setup.eval_batch_size)
        self.watchdog = Watchdog(
            run_dir,
            factor=run.hang_factor,
            at_least=run.hang_seconds,
            note=self._note_hang,
            on_hang=on_hang,
        )

    @property
    def complete(self) -> bool:
        """Whether all updates are done, or no more of them are wanted."""
        return self.done >= self._run.steps or self._stopping.over(self.done)

    def restore(self) -> None:
        """Reads the newest intact checkpoint, or makes the initial state without one.

        Raises:
          UserError: the data changed since the checkpoint.
        """
        plan, reports = self._setup.plan, self._reports
        self._observed, averages = False, None
        with self.watchdog.paused(), self._spent.spend(goodput.RESTORE):
            base = self._initial_state() if self._setup.references else None
            found = self._checkpoints.restore_newest(
                plan.shapes,
                lambda text: reports.event("damaged checkpoint", 0, text),
                base,
            )
            if found is None:
                self._batches.set_state(self._beginning)
                reports.note("started", 0)
                self.done, seen = 0, 0.0
                self.state = base or self._initial_state()
            else:
                fingerprint = self._experiment.data.fingerprint()
                check_same_data(found.data, fingerprint, self._changed_data)
                self._batches.set_state(found.data["iterator"])
                # Checkpoints of earlier versions lack "seen": it stays unknown.
                seen = found.data.get("seen", float("nan"))
                averages = found.data.get("noise_scale")
                self.done, self.state = found.step, found.state
        self._stopping.forget_after(self.done)
        if self.complete:
            self.evaluated = _noted_as_finished(self._spool.folder, self.done)
            also = "" if self.evaluated else ", but for its last evaluation"
            message = f"finished already, at step {self.done}{also}"
            more = "train.steps" if self.done >= self._run.steps else "train.patience"
            reports.say(f"{message}; a larger {more} extends the run")
        elif found is not None:
            message = f"resuming from step {self.done}"
            reports.event("resumed", self.done, message)
        reports.start(self.done)
        self._bad = BadStepLog(self._run_dir, self.done, self._experiment.bad_steps)
        steps = self._run.noise_scale
        noise = None if steps is None else NoiseScale(steps, averages)
        unit, norms = self._experiment.objective.unit, self._setup.step.norms
        self._figures = StepFigures(unit, norms, noise)
        self._log = StepLog(
            min(self._run.log_every, max(1, self._run.steps // _LINES)),
            self._run.steps,
            unit,
            self._log_step,
            self._check,
            self._figures.numbers,
            seen,
        )
        self._clock.saved()
        if not (self.complete and self.evaluated):
            self._spent.note(self.done)
        self._spent.run_from(goodput.STEPS)
        if self._run.patience is not None and self._owes_evaluation():
            # It was interrupted at this step, before its evaluation.
            self.evaluate(last=False)
            self._note_if_stopped()

    def _owes_evaluation(self) -> bool:
        due = self.done and not self.done % self._run.eval_every
        return due and not (self.complete or self._stopping.known(self.done))

    def _note_if_stopped(self) -> None:
        if self._stopping.over(self.done):
            message = self._stopping.describe(self.done)
            self._reports.event("stopped early", self.done, message)

    def _initial_state(self) -> State:
        plan = self._setup.plan
        return start_from(self._setup.copies, plan.init(), plan)

    def note_start(self) -> None:
        """Adds to starts.jsonl with what, and on what, this start runs."""
        if jax.process_index() or (self.complete and self.evaluated):
            return
        mesh, params = self._setup.mesh, self._setup.plan.decoded_shapes
        line = {
            "began": self._spent.began,
            "step": self.done,
            "devices": mesh.size,
            "device_kind": mesh.devices.flat[0].device_kind,
            "processes": jax.process_count(),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        }
        with self.watchdog.paused(), self._spent.spend(goodput.SET_UP):
            starts.note(self._spool.folder, line | program())

    def step(self) -> None:
        """Makes one update: next batch, compiled step, metrics to the log."""
        if self._observes:
            self._observe()
        self.watchdog.begin(self.done + 1)
        asked = time.perf_counter()
        number, batch = next_batch(self._batches, self._bad.passed_over)
        if self._log.all_computed():
            # Otherwise the devices had enough to do while the host waited.
            self._spent.move(time.perf_counter() - asked, goodput.DATA)
        self.watchdog.compute()
        batch = global_batch(batch, self._setup.sharding, self._run.batch_size)
        phase = self._setup.plan.freezing.phase(self.done)
        with self._profile.step(self.done + 1):
            self.state, metrics = self._setup.step(self.state, batch, phase)
        self.done += 1
        if self._profile.is_over(self.done):
            with self.watchdog.paused(), self._spent.spend(goodput.PROFILE):
                self._reports.say(self._profile.stop(self.done, metrics))
        self._log.push(self.done, number, metrics)
        self._reports.advance(self.done)

    def _observe(self) -> None:
        """Shows the parameters to batches that depend on them, if it is due."""
        data, objective = self._experiment.data, self._experiment.objective
        if self._observed and self.done % data.observe_every:
            return
        with self.watchdog.paused(), self._spent.spend(goodput.DATA):
            data.observe(self._batches, objective, self.state.variables, self.done)
        self._observed = True

    def after_step(self, interruption: Interruption) -> None:
        """Saves, then evaluates, if they are due."""
        run, step = self._run, self.done
        # A run that is interrupted at its last step finishes as usual.
        self.interrupted = interruption.reached(step) and not self.complete
        ends = self.complete or self.interrupted
        saves = self._clock.is_due(step) or self._saver.is_due_again() or ends
        saves |= bool(run.checkpoint_every) and step % run.checkpoint_every == 0
        evaluates = bool(run.eval_every) and step % run.eval_every == 0 and not ends
        if not (saves or evaluates):
            return
        # All pending losses are read first, so that no bad step is saved or evaluated.
        with self._log.paused(), self.watchdog.paused():
            if evaluates and run.patience is not None:
                # First, as it says whether this step is the best, or the last.
                evaluates = False
                self.evaluate(last=False)
                self._note_if_stopped()
                ends = self.complete
                saves |= ends or self._stopping.best(step) == step
            if saves:
                self._save(wait=ends)
            if evaluates:
                self.evaluate(last=False)

    def evaluate(self, last: bool) -> None:
        """Computes the validation loss and runs experiment.evaluations."""
        variables, step = self.state.eval_variables, self.done
        with self.watchdog.paused(), self._spent.spend(goodput.EVALUATION):
            values = self._validate(variables, last) if self._has_validation else {}
            point = EvaluationPoint(step, variables, values, last)
            failures = []
            found = run_evaluations(
                self._experiment, point, lambda *failure: failures.append(failure)
            )
            for failure in failures:
                self._note_failure(*failure)
            seen = {f"{self._experiment.objective.unit}_seen": self._log.seen}
            seen |= self._epoch(self._batches.get_state()["position"])
            self._validation = self._reports.validation(step, values, found, seen)
        if not failures or self._run.best_metric in self._validation:
            self._note_best(step, self._validation)
        if last:
            self.evaluated = True
            self._reports.note("finished", step)
        self._upload_reports()

    def _note_best(self, step: int, values: dict[str, float]) -> None:
        """Records an evaluation for train.keep_best and train.patience.

        Raises:
          UserError: it has no train.best_metric.
        """
        name = self._run.best_metric
        if name in values:
            self._checkpoints.note_value(step, values[name])
            self._stopping.note(step, values)
        elif self._run.patience or (self._run.keep_best and values):
            raise UserError(
                f"train.best_metric = {name!r}: the validation gives "
                f"{', '.join(sorted(values)) or 'nothing'}; expected one of these."
            )

    def roll_back(self, error: Rollback) -> None:
        """Restores a checkpoint from before a bad step; its batches will be skipped.

        Raises:
          Diverged: there is no checkpoint from before the bad step.
        """
        steps = self._checkpoints.steps
        if steps and not any(saved < error.step for saved in steps):
            raise Diverged(f"{error}, and no checkpoint is older", error.step)
        self._saver.settle()
        self._checkpoints.drop_after(error.step - 1)
        self._bad.keep(error.record)
        self._spent.note(self.done)
        without = f"without the batches {error.record['passed_over']}"
        message = f"{error}; going back, {without}"
        self._reports.event("rollback", error.step, message)
        self.restore()

    def diverged(self, error: Diverged) -> Diverged:
        """The error, with the last checkpoint named; also recorded as an event."""
        self._checkpoints.settle()
        saved = self._checkpoints.steps
        where = f"; the last checkpoint is of step {saved[-1]}" if saved else ""
        message = f"{error}. The last good step is {error.step - 1}{where}."
        self._reports.note("diverged", error.step, message)
        return Diverged(message, error.step)

    def close(self) -> None:
        """Stops background threads and writes the last lines of the logs."""
        if self._spent.noted:
            self._spent.note(self.done)
        self._profile.close()
        self._reports.close()
        self._batches.close()
        self._checkpoints.close()

    def outcome(self) -> Outcome:
        """How the run ended."""
        if self.interrupted:
            message = (
                f"interrupted: step {self.done} is saved; the same command continues"
            )
            self._reports.event("interrupted", self.done, message)
        ended = (self.done, self.complete, self.state, self._validation)
        return Outcome(*ended, self._run_dir)

    def _save(self, wait: bool) -> None:
        position = {
            "iterator": whole_state(self._batches),
            "fingerprint": self._experiment.data.fingerprint(),
            "seen": self._log.seen,
            **self._figures.saved,
        }
        meta = {"config": self._config_text, "versions": versions()}
        save = self._saver.finish if wait else self._saver.save
        with self._spent.spend(goodput.SAVING):
            # First, so that no metric of a step that is kept is lost.
            self._upload_reports()
            save(self.state, position, meta)
        self._clock.saved()

    def _upload_reports(self) -> None:
        if self._spool.uploads:
            self._reports.flush()
            self._spool.upload()

    def _note_hang(self, why: str) -> None:
        self._reports.note("hung", self.done, why)
        self._spool.upload()

    def _program(self) -> str:
        """The compiled step as text; from JAX's cache, where it keeps one."""
        traced, _ = self._setup.step.trace(self._setup.plan.freezing.phase(self.done))
        return traced.lower().compile().as_text()

    def _log_step(self, step: int, batch: int, values: dict[str, float]) -> None:
        unit = self._experiment.objective.unit
        rate = values[f"{unit}_per_second"] / self._setup.mesh.size
        values |= self._epoch(batch + 1) | {
            f"{unit}_per_second_per_device": rate,
            "waiting_for_data": self._spent.share_since_last_note(goodput.DATA),
            "goodput": self._spent.note(self.done),
            "device_memory_peak": device_memory_peak(),
        }
        if len(groups := self._setup.plan.rate_groups) > 1:
            peak = values["learning_rate"]
            values |= {f"learning_rate/{factor:g}": factor * peak for factor in groups}
        self._reports.training(step, values)
        warning = above_critical_batch(self._run, values, unit)
        if warning and not self._warned:
            self._warned = True
            self._reports.event("batch above critical", step, warning)

    def _check(self, step: int, batch: int, metrics: dict[str, Any]) -> None:
        """Judges the metrics of each step, and adds them to averages over steps."""
        self._bad.check(step, batch, metrics)
        self._figures.add(metrics)

    def _epoch(self, batches: int) -> dict[str, float]:
        """{"epoch": passes over the train split after so many batches}, if known."""
        rows = self._train_rows
        return {"epoch": batches * self._run.batch_size / rows} if rows else {}

    def _note_failure(self, name: str, error: Exception) -> None:
        message = f"the evaluation {name} failed: {in_a_line(error)}"
        self._reports.event("evaluation failed", self.done, message)


def _noted_as_finished(run_dir: pathlib.Path, step: int) -> bool:
    """Whether events.jsonl records the end of the run; read by the first process."""
    noted = any(
        (event["kind"], event["step"]) == ("finished", step)
        for event in events.read(run_dir)
    )
    if jax.process_count() > 1:
        noted = multihost_utils.broadcast_one_to_all(np.array(noted))
    return bool(noted)
