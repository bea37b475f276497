"""The whole run, top to bottom: set up, restore, step, log, evaluate, save, finish."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.sharding.mesh import batch_sharding, global_batch, local_rows, on_mesh
from fmjax.training.checkpoints import Checkpoints
from fmjax.training.checks import check_divisible, check_same_data
from fmjax.training.environment import use_compilation_cache, versions
from fmjax.training.evaluate import evaluate
from fmjax.training.init_from import Source, check_tokenizers, plan_copies, start_from
from fmjax.training.interruption import Interruption
from fmjax.training.metrics import MetricWriter, NoWriter
from fmjax.training.progress import Reporter, spelled
from fmjax.training.state import State, plan_state
from fmjax.training.step import make_eval_step, make_train_step
from fmjax.training.step_log import Diverged, StepLog
from fmjax.training.throughput import mfu

# (step, variables, whether it is the last) → figures to log, texts and pictures (uint8
# [H, W, 3]) to show.
Evaluation = Callable[[int, dict, bool], dict[str, float | str | np.ndarray]]


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
    changed_data: bool = False,
) -> Outcome:
    """Runs an experiment to its end, from wherever the last call stopped.

    Args:
      experiment: a resolved `fmjax.config.Experiment`.
      run_dir: where everything is kept; the caller has checked that it is this run's.
      config_text: the whole config, stored with every checkpoint.
      evaluations: called after each evaluation on the validation split.
      sources: the runs of experiment.init_from; none where the run continues.
      on_checked: called when everything fits, before anything is made.
      changed_data: continue although the data is not what the checkpoint was made with.

    Raises:
      UserError: where parts of the experiment do not fit; nothing is compiled then.
      Diverged: if the loss is not finite.
    """
    run, data, objective = experiment.train, experiment.data, experiment.objective
    say = Reporter()
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
    )
    copies = plan_copies(sources, plan, getattr(objective.model, "vocab_size", None))
    if jax.process_index() == 0:
        tokenizer = data.tokenizer()
        check_tokenizers(copies, tokenizer)
        objective.check(data.row_shapes(), tokenizer and tokenizer.vocab_size)
        if check_classes := getattr(objective, "check_classes", None):
            check_classes(data.class_names())
        data.prepare()
    data.wait_until_prepared()
    on_checked()
    batches = data.train_batches(
        run.batch_size, local_rows(sharding, run.batch_size), run.seed
    )
    flops = objective.train_flops_per_row(plan.shapes.params, data.row_shapes())
    size = sum(leaf.size for leaf in jax.tree.leaves(plan.shapes.params))
    shape = " × ".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1) or "1 device"
    say.say(f"{size:,} parameters on {shape} ({mesh.devices.flat[0].device_kind})")
    for line in plan.freezing.spelled(plan.shapes.params):
        say.say(line)
    for copy in copies:
        say.say(copy.spelled())

    checkpoints = Checkpoints(
        run_dir,
        keep_last=run.keep_last,
        keep_every=run.keep_every,
        keep_best=run.keep_best,
    )
    if checkpoints.steps:
        start = checkpoints.steps[-1]
        state, data_state, _ = checkpoints.restore(plan.shapes, start)
        check_same_data(data_state, data.fingerprint(), changed_data)
        batches.set_state(data_state["iterator"])
        say.say(f"resuming from step {start}")
    else:
        start, state = 0, start_from(copies, plan.init())

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
    eval_step = make_eval_step(objective)
    first = jax.process_index() == 0
    writer = (
        MetricWriter(run_dir, start, run.wandb_project, config_text)
        if first
        else NoWriter()
    )

    def write(step: int, values: dict[str, float]) -> None:
        rows_per_second = run.batch_size / values["step_seconds"]
        values["mfu"] = mfu(rows_per_second * flops, mesh.size)
        writer.write(step, "train", values)
        say.log(step, run.steps, objective.unit, values)

    def validate(step: int, last: bool) -> dict[str, float]:
        split = data.eval_batches(
            eval_size,
            local_rows(sharding, eval_size),
            max_batches=None if last else run.eval_batches,
        )
        began = time.perf_counter()
        values = evaluate(
            eval_step,
            state.eval_variables,
            split,
            lambda b: global_batch(b, sharding, eval_size),
            objective.unit,
        )
        values["seconds"] = time.perf_counter() - began
        say.say(f"step {step}/{run.steps}  validation " + spelled(values))
        for evaluation in evaluations:
            found = evaluation(step, state.eval_variables, last)
            figures = {k: v for k, v in found.items() if isinstance(v, float)}
            if figures:
                values |= figures
                say.say(f"step {step}/{run.steps}  {spelled(figures)}")
            for name in found.keys() - figures.keys():
                if isinstance(found[name], str):
                    say.say(f"{name}: {found[name]}")
                    writer.write_text(step, name, found[name])
                else:
                    writer.write_picture(step, name, found[name])
        writer.write(step, "validation", values)
        return values

    def save(loss: float | None) -> None:
        checkpoints.save(
            state,
            {"iterator": batches.get_state(), "fingerprint": data.fingerprint()},
            {"config": config_text, "versions": versions()},
            loss,
        )

    validation: dict[str, float] = {}
    step, interrupted = start, False
    log = StepLog(run.log_every, run.steps, objective.unit, write)
    say.start(start, run.steps)
    try:
        with on_mesh(mesh, rules), Interruption() as interruption:
            while step < run.steps and not interrupted:
                batch = global_batch(next(batches), sharding, run.batch_size)
                state, metrics = train_step(state, batch, plan.freezing.phase(step))
                step += 1
                log.push(step, metrics)
                say.advance(step)
                done = step == run.steps
                # Told to stop at the very end, a run still ends as every other does.
                interrupted = interruption.reached(step) and not done
                fresh = done or (run.eval_every and step % run.eval_every == 0)
                if fresh and not interrupted:
                    with log.paused():
                        validation = validate(step, last=done)
                due = run.checkpoint_every and step % run.checkpoint_every == 0
                if due or done or interrupted:
                    # A state is saved only once its loss is known to be finite.
                    with log.paused():
                        save(validation["loss"] if fresh and not interrupted else None)
            checkpoints.wait()
    except Diverged as error:
        checkpoints.wait()
        saved = checkpoints.steps
        where = f"; the last checkpoint is of step {saved[-1]}" if saved else ""
        raise Diverged(
            f"{error}. The last good step is {error.step - 1}{where}.", error.step
        ) from None
    finally:
        say.stop()
        writer.close()
        batches.close()
        checkpoints.close()
    if start == run.steps:
        say.say(f"finished already, at step {start}; train.steps asks for no more")
    if interrupted:
        say.say(f"interrupted: step {step} is saved; the same command continues")
    return Outcome(step, step >= run.steps, state, validation)
