"""Setup of a run before its first step: checks, state plan, prepared data."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from fmjax.data.runtime.batch_source import ChecksTraining, PreparesTraining
from fmjax.sharding.mesh import batch_sharding
from fmjax.sharding.rules import LogicalRules
from fmjax.sharding.xla_options import check_xla_options
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.checks import check_divisible, check_packed_prompt
from fmjax.training.copy_plan import Copy, check_tokenizers
from fmjax.training.experiment import Experiment
from fmjax.training.memory import check_memory
from fmjax.training.noise_scale import check_noise_scale
from fmjax.training.parametrize import plan_scaling
from fmjax.training.start import Start
from fmjax.training.state import StatePlan, plan_state
from fmjax.training.traced_step import TracedStep


@dataclasses.dataclass(frozen=True)
class Setup:
    """The mesh, shardings and state plan of a run on these devices.

    Attributes:
      mesh: of all devices.
      rules: logical to mesh axes.
      sharding: of a batch.
      eval_batch_size: rows of an evaluation batch.
      plan: of the state; nothing is allocated yet.
      step: the train step, traced but not compiled yet.
      copies: parameters to copy from other runs, at step 0 or at every start.
      references: those that checkpoints name in other runs instead of holding them.
    """

    mesh: jax.sharding.Mesh
    rules: LogicalRules
    sharding: jax.sharding.NamedSharding
    eval_batch_size: int
    plan: StatePlan
    step: TracedStep
    copies: list[Copy]
    references: list[Reference]

    @property
    def omitted(self) -> list[str]:
        """Paths of the parameters that checkpoints need not hold, see `references`."""
        return [
            kept
            for reference in self.references
            for path in reference.arrays
            for kept in self.plan.peft.kept_as(path)
        ]


def plan_run(
    experiment: Experiment, mesh: jax.sharding.Mesh, rules: LogicalRules
) -> StatePlan:
    """The state plan of a run on a mesh; nothing is allocated."""
    run = experiment.train
    return plan_state(
        experiment.objective,
        experiment.optimizer,
        mesh,
        rules,
        train_steps=run.steps,
        seed=run.seed,
        ema=run.ema_decay is not None,
        freeze=experiment.freeze,
        bad_steps=experiment.bad_steps,
        optimizer_rules=experiment.mesh.optimizer_rules,
        scaling=plan_scaling(experiment),
        rate_factor=run.rate_factor,
        peft=experiment.peft,
    )


def set_up(
    experiment: Experiment,
    start: Start,
    on_checked: Callable[[Sequence[Reference]], None] = lambda references: None,
) -> Setup:
    """Checks that the parts fit together, plans the state, and prepares the data.

    Args:
      experiment: with data and an optimizer.
      start: where parameters come from that are not those of the initializer.
      on_checked: called with the parameters that checkpoints name in other runs, after
        all checks have passed, before anything is compiled.

    Raises:
      UserError: parts of the experiment do not fit together.
    """
    run, data, objective = experiment.train, experiment.data, experiment.objective
    mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
    eval_size = run.eval_batch_size or run.batch_size
    check_divisible("train.batch_size", run.batch_size, run.microbatches, mesh, rules)
    check_noise_scale(run, objective)
    if experiment.adversary is not None:
        experiment.adversary.check(objective, run.microbatches)
    check_divisible("train.eval_batch_size", eval_size, 1, mesh, rules)
    plan = plan_run(experiment, mesh, rules)
    check_xla_options(mesh.devices.flat[0], run.xla_options)
    check_memory(plan, mesh)
    check_packed_prompt(plan.peft, data, objective.model)
    copies, referred = start.copies(plan, objective.vocab_size)
    if jax.process_index() == 0:
        tokenizer = data.tokenizer()
        check_tokenizers(copies, tokenizer)
        objective.check(data.row_shapes(), tokenizer and tokenizer.vocab_size)
        objective.check_data(data)
        if isinstance(data, ChecksTraining):
            data.check_training()
        for evaluation in experiment.evaluations:
            evaluation.check(experiment)
        for tracker in experiment.trackers:
            tracker.check()
    step = TracedStep(experiment, plan, mesh, rules)
    step.check(phase=0)
    if jax.process_index() == 0:
        data.prepare()
    data.wait_until_prepared()
    if isinstance(data, PreparesTraining):
        data.prepare_training()
    on_checked(referred)
    sharding = batch_sharding(mesh, rules)
    return Setup(mesh, rules, sharding, eval_size, plan, step, copies, referred)
