"""One training step and one evaluation step, jitted over a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from fmjax.objectives.attack import PixelRange
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Batch, LossOutput
from fmjax.optim.parametrization import average, combine
from fmjax.sharding.mesh import batch_sharding
from fmjax.sharding.rules import LogicalRules
from fmjax.sharding.xla_options import compiled_with
from fmjax.training.accumulation import Metrics, accumulate
from fmjax.training.adversary import Adversary
from fmjax.training.norms import Norms
from fmjax.training.state import State, StatePlan

Sums = dict[str, tuple[jax.Array, jax.Array]]


def example_keys(seed: int, step: Int[Array, ""], rows: int) -> Key[Array, " rows"]:
    """One random key per row of a global batch, independent of the mesh."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def make_train_step(
    objective: Objective,
    plan: StatePlan,
    learning_rate: Callable,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
    *,
    seed: int,
    microbatches: int = 1,
    ema_decay: float | None = None,
    norms: Norms | None = None,
    noise_scale: bool = False,
    adversary: Adversary | None = None,
    pixels: PixelRange | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[..., tuple[State, Metrics]]:
    """Makes the jitted training step: (state, global batch, phase) → (state, metrics).

    The state is donated. The phase, by default 0, is the freezing phase of the state's
    step, see `fmjax.optim.freezing`; each phase is compiled separately.

    Metrics are float32 scalars: "loss"; each term's part of it, by the term's name;
    each ratio of the objective; "grad_norm" (before clipping); "learning_rate"; and the
    weight of the first term, by the name of the objective's unit, such as "tokens". If
    `plan.bad_steps` skips updates, "bad" is 0, NOT_FINITE or SPIKE; a bad step changes
    nothing in the state but the step count. With `norms` there is "norms", the array of
    `Norms.measure`; with `noise_scale` "noise_scale", see `accumulate`.

    Args:
      objective: the training objective.
      plan: of the state.
      learning_rate: step → learning rate, for the metrics.
      mesh: of the run.
      rules: logical to mesh axes.
      seed: of the random keys of the rows.
      microbatches: number of microbatches.
      ema_decay: decay of the averaged parameters; None if none are kept.
      norms: groups of parameters whose norms are measured; None for none.
      noise_scale: whether to measure what the gradient noise scale needs.
      adversary: perturbs inputs; None for none.
      pixels: the range of images, for the adversary; None for no bounds.
      compiler_options: of XLA, see `fmjax.sharding.xla_options`.
    """

    def step(state: State, batch: Batch, phase: int = 0) -> tuple[State, Metrics]:
        rows = next(iter(batch.values())).shape[0]
        keys = example_keys(seed, state.step, rows)
        trained = plan.freezing.partition(state.params, phase)
        with compiled_with(compiler_options):
            grads, metrics, extra = accumulate(
                objective,
                state,
                batch,
                keys,
                microbatches,
                trained,
                noise_scale,
                adversary,
                pixels,
            )
        if plan.update_shardings is not None:
            # Reduced to where the optimizer's state is, instead of everywhere.
            grads = jax.lax.with_sharding_constraint(
                grads, plan.freezing.partition(plan.update_shardings, phase)
            )
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics["learning_rate"] = jnp.float32(learning_rate(state.step))
        with jax.named_scope("optimizer"):
            updates, opt_state = plan.transformation.update(
                grads, state.opt_state, trained
            )
            trained = objective.project_params(optax.apply_updates(trained, updates))
        params = combine(trained, state.params)
        ema = state.ema
        if ema is not None:
            ema = average(ema, trained, ema_decay)
        guard = state.guard
        if guard is not None:
            judged, guard = plan.bad_steps.judge(
                guard, metrics["loss"], metrics["grad_norm"]
            )
            metrics["bad"] = judged
            params, extra, opt_state, ema = jax.tree.map(
                lambda new, old: jnp.where(judged == 0, new, old),
                (params, extra, opt_state, ema),
                (state.params, state.extra, state.opt_state, state.ema),
            )
        if norms is not None:
            # Whole on each process, which reads it.
            metrics["norms"] = jax.lax.with_sharding_constraint(
                norms.measure(grads, state.params, params),
                jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
            )
        done = State(state.step + 1, params, extra, opt_state, ema, guard)
        return done, metrics

    return jax.jit(
        step,
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(plan.shardings, batch_sharding(mesh, rules)),
        out_shardings=(plan.shardings, None),
        compiler_options=compiler_options,
    )


def make_eval_step(
    objective: Objective, compiler_options: dict[str, Any] | None = None
) -> Callable[[dict, Batch], tuple[Sums, Sums, jax.Array]]:
    """Makes the jitted evaluation step: (variables, global batch) → sums to add up.

    The sums are (sum, weight) of each term, (sum, weight) of each ratio, and the number
    of targets in the objective's unit. A term's sum includes its coefficient, so the
    loss is Σ sum / weight. Collections that the loss returns are discarded.

    Args:
      objective: the training objective.
      compiler_options: of XLA, see `fmjax.sharding.xla_options`.
    """

    def step(variables: dict, batch: Batch):
        with compiled_with(compiler_options):
            out = objective.loss(variables, batch, None)
        return evaluation_sums(objective, batch, out)

    return jax.jit(step, compiler_options=compiler_options)


def evaluation_sums(
    objective: Objective, batch: Batch, out: LossOutput
) -> tuple[Sums, Sums, jax.Array]:
    """What an evaluation step returns of a loss; see `make_eval_step`."""
    shares = {
        name: (term.coefficient * term.sum, term.weight)
        for name, term in out.terms.items()
    }
    ratios = {name: tuple(ratio) for name, ratio in out.metrics.items()}
    # The first term is selected here: jit returns dicts sorted by name.
    return shares, ratios, next(iter(objective.weights(batch).values()))
