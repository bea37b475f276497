"""The whole run, top to bottom: set up, restore, step, log, evaluate, save, finish."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fmjax.sharding.mesh import batch_sharding, global_batch, local_rows, on_mesh
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.checkpoint.saver import Saver
from fmjax.training.checks import check_divisible, check_same_data
from fmjax.training.environment import use_compilation_cache, versions
from fmjax.training.faults.bad_step_log import BadStepLog, Diverged, Rollback
from fmjax.training.faults.device_check import check_devices
from fmjax.training.faults.interruption import Interruption
from fmjax.training.faults.watchdog import Watchdog
from fmjax.training.init_from import Source, check_tokenizers, plan_copies, start_from
from fmjax.training.numbered_batches import next_batch
from fmjax.training.reporting.metrics import MetricWriter
from fmjax.training.reporting.reports import Reports
from fmjax.training.reporting.step_log import StepLog
from fmjax.training.reporting.throughput import mfu
from fmjax.training.state import State, plan_state
from fmjax.training.step import make_train_step
from fmjax.training.validation import Evaluation, Validation


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
      step: updates done.
      finished: whether that is all of them; otherwise the run was told to stop.
      state: the state at that step.
      validation: the last evaluation, empty if there was none.
    """

    step: int
    finished: bool
    state: State
    validation: dict[str, float]


def train(
    experiment: Any,
    run_dir: pathlib.Path,
    config_text: str,
    evaluations: Sequence[Evaluation] = (),
    *,
    sources: Sequence[Source] = (),
    on_checked: Callable[[], None] = lambda: None,
    on_hang: Callable[[str], None],
    changed_data: bool = False,
) -> Outcome:
    """Runs an experiment to its end, from wherever the last call stopped.

    Args:
      experiment: a resolved `fmjax.training.experiment.Experiment`.
      run_dir: where everything is kept; the caller has checked that it is this run's.
      config_text: the whole config, stored with every checkpoint.
      evaluations: called after each evaluation on the validation split.
      sources: the runs of experiment.init_from; none where the run continues.
      on_checked: called when everything fits, before anything is made.
      on_hang: called from another thread with what hangs, where something does.
      changed_data: continue although the data is not what the checkpoint was made with.

    Raises:
      UserError: where parts of the experiment do not fit; nothing is compiled then.
      Diverged: at a bad step, where experiment.bad_steps says stop.
      CannotSave: if saving fails again and again.
      BadDevice: if a device computes wrongly.
    """
    run, data, objective = experiment.train, experiment.data, experiment.objective
    use_compilation_cache(run.compilation_cache)
    mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
    sharding = batch_sharding(mesh, rules)
    eval_size = run.eval_batch_size or run.batch_size
    check_divisible("train.batch_size", run.batch_size, run.microbatches, mesh, rules)
    check_divisible("train.eval_batch_size", eval_size, 1, mesh, rules)

    plan = plan_state(
        objective,
        experiment.optimizer,
        mesh,
        rules,
        train_steps=run.steps,
        seed=run.seed,
        ema=run.ema_decay is not None,
        freeze=experiment.freeze,
        bad_steps=experiment.bad_steps,
    )
    copies = plan_copies(sources, plan, getattr(objective.model, "vocab_size", None))
    if jax.process_index() == 0:
        tokenizer = data.tokenizer()
        check_tokenizers(copies, tokenizer)
        objective.check(data.row_shapes(), tokenizer and tokenizer.vocab_size)
        if check_data := getattr(objective, "check_data", None):
            check_data(data)
        data.prepare()
    data.wait_until_prepared()
    on_checked()
    batches = data.train_batches(
        run.batch_size, local_rows(sharding, run.batch_size), run.seed
    )
    flops = objective.train_flops_per_row(plan.shapes.params, data.row_shapes())
    reports = Reports(
        run_dir,
        run.steps,
        objective.unit,
        lambda seconds: mfu(run.batch_size / seconds * flops, mesh.size),
        lambda step: MetricWriter(run_dir, step, run.wandb_project, config_text),
    )
    lines = [plan.describe(mesh), *plan.freezing.describe(plan.shapes.params)]
    for line in lines + [copy.describe() for copy in copies]:
        reports.say(line)
    check_devices(mesh)

    checkpoints = Checkpoints(
        run_dir,
        keep_last=run.keep_last,
        keep_every=run.keep_every,
        keep_best=run.keep_best,
    )
    saver = Saver(
        checkpoints,
        run.save_attempts,
        run.save_pause_seconds,
        lambda text: reports.event("save failed", step, text),
    )
    train_step = make_train_step(
        objective,
        plan,
        lambda step: experiment.optimizer.learning_rate(step, run.steps),
        mesh,
        rules,
        seed=run.seed,
        microbatches=run.microbatches,
        ema_decay=run.ema_decay,
    )
    validate = Validation(experiment, sharding, eval_size, evaluations)
    beginning = batches.get_state()

    def restore() -> tuple[int, State]:
        found = checkpoints.restore_newest(
            plan.shapes, lambda text: reports.event("damaged checkpoint", 0, text)
        )
        if not found:
            batches.set_state(beginning)
            reports.note("started", 0)
            return 0, start_from(copies, plan.init())
        check_same_data(found.data, data.fingerprint(), changed_data)
        batches.set_state(found.data["iterator"])
        if found.step < run.steps:
            reports.event("resumed", found.step, f"resuming from step {found.step}")
        return found.step, found.state

    def to_save(loss: float | None) -> tuple:
        position = {"iterator": batches.get_state(), "fingerprint": data.fingerprint()}
        return state, position, {"config": config_text, "versions": versions()}, loss

    def roll_back(error: Rollback) -> None:
        older = [saved for saved in checkpoints.steps if saved < error.step]
        if checkpoints.steps and not older:
            raise Diverged(f"{error}, and no checkpoint is older", error.step)
        saver.settle()
        checkpoints.drop_after(error.step - 1)
        bad.keep(error.record)
        without = f"without the batches {error.record['passed_over']}"
        reports.event("rollback", error.step, f"{error}; going back, {without}")

    validation: dict[str, float] = {}
    start, rewinds, interrupted = 0, True, False
    watchdog = Watchdog(
        run_dir,
        factor=run.hang_factor,
        at_least=run.hang_seconds,
        note=lambda why: reports.note("hung", step, why),
        on_hang=on_hang,
    )
    try:
        with on_mesh(mesh, rules), Interruption() as interruption, watchdog:
            while rewinds:
                with watchdog.paused():
                    start, state = restore()
                step, rewinds = start, False
                reports.start(start)
                bad = BadStepLog(run_dir, start, experiment.bad_steps)
                log = StepLog(
                    run.log_every,
                    run.steps,
                    objective.unit,
                    reports.training,
                    bad.check,
                )
                try:
                    while step < run.steps and not interrupted:
                        watchdog.begin(step + 1)
                        number, batch = next_batch(batches, bad.passed_over)
                        watchdog.compute()
                        batch = global_batch(batch, sharding, run.batch_size)
                        phase = plan.freezing.phase(step)
                        state, metrics = train_step(state, batch, phase)
                        step += 1
                        log.push(step, number, metrics)
                        reports.advance(step)
                        done = step == run.steps
                        # Told to stop at the very end, a run still ends as any other.
                        interrupted = interruption.reached(step) and not done
                        fresh = done or (run.eval_every and step % run.eval_every == 0)
                        due = run.checkpoint_every and step % run.checkpoint_every == 0
                        if not (fresh or due or interrupted or saver.is_due_again()):
                            continue
                        # What is validated or saved is a state whose loss was read.
                        with log.paused(), watchdog.paused():
                            loss = None
                            if fresh and not interrupted:
                                found = validate(step, state.eval_variables, done)
                                validation = reports.validation(step, *found)
                                loss = validation["loss"]
                            if done or interrupted:
                                saver.finish(*to_save(loss))
                            elif due or saver.is_due_again():
                                saver.save(*to_save(loss))
                except Rollback as error:
                    roll_back(error)
                    rewinds = True
    except Diverged as error:
        checkpoints.settle()
        saved = checkpoints.steps
        where = f"; the last checkpoint is of step {saved[-1]}" if saved else ""
        told = f"{error}. The last good step is {error.step - 1}{where}."
        reports.note("diverged", error.step, told)
        raise Diverged(told, error.step) from None
    finally:
        reports.close()
        batches.close()
        checkpoints.close()
    if start == run.steps:
        reports.say(f"finished already, at step {start}; train.steps asks for no more")
    elif not interrupted:
        reports.note("finished", step)
    if interrupted:
        told = f"interrupted: step {step} is saved; the same command continues"
        reports.event("interrupted", step, told)
    return Outcome(step, step >= run.steps, state, validation)
