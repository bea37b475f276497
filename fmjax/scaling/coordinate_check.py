"""Coordinate check: whether activations keep their size as a model gets larger.

Yang et al. 2022 (arXiv:2203.03466), appendix D.1: models of several widths are trained
for a few steps, and the mean magnitude of their activations is drawn against the width.
In a correct parametrization no curve grows, neither before the first update nor after
any other; in the standard one updates grow with the width. For depth likewise.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.errors import UserError
from fmjax.models.contracts import PredictsTokens
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.transformer import Stack
from fmjax.models.resize import first_stack, resized
from fmjax.objectives.objective import Objective
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import batch_sharding, global_batch, on_mesh
from fmjax.training.experiment import Experiment
from fmjax.training.parametrize import resolve
from fmjax.training.setup import plan_run
from fmjax.training.traced_step import TracedStep
from fmjax.training.vocab_size import with_vocab_size

# Parts of a stack's depth whose activations are compared between depths.
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class CoordinateCheck:
    """Magnitudes of activations by size.

    Attributes:
      axis: what is scaled: "width" or "depth".
      sizes: widths or numbers of layers of the first stack.
      magnitudes: by parametrization ("standard", and that of the config) and then by
        activation: mean |x|, [sizes, updates + 1], before each update and after the
        last.
    """

    axis: str
    sizes: tuple[int, ...]
    magnitudes: dict[str, dict[str, Float[np.ndarray, "S U"]]]

    def slopes(self, parametrization: str) -> dict[str, Float[np.ndarray, " U"]]:
        """Slopes of log mean |x| against the log of the size, by activation.

        At each update: 0 where the activation keeps its size, 1 where it grows as the
        size does.
        """
        x = np.log(self.sizes)
        x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        found = self.magnitudes[parametrization]
        return {name: x @ np.log(values) for name, values in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "axis": self.axis,
            "sizes": list(self.sizes),
            "magnitudes": {
                how: {name: values.tolist() for name, values in found.items()}
                for how, found in self.magnitudes.items()
            },
            "slopes": {
                how: {n: slope.tolist() for n, slope in self.slopes(how).items()}
                for how in self.magnitudes
            },
        }


def coordinate_check(
    experiment: Experiment,
    *,
    widths: Sequence[int] = (),
    depths: Sequence[int] = (),
    steps: int = 4,
) -> CoordinateCheck:
    """Trains an experiment's model at several sizes, with its parametrization and none.

    The learning rate is the schedule's peak at every step.

    Args:
      experiment: with data, an optimizer and a parametrization.
      widths: of the first stack; all stacks are resized in that ratio, with heads of
        the same width.
      depths: numbers of layers of the first stack, in place of widths.
      steps: updates of each model.

    Raises:
      UserError: the experiment has no parametrization, sizes do not divide, or there
        are fewer than two.
    """
    how = experiment.parametrization
    if how is None:
        raise UserError(
            "experiment.parametrization has no value, so that there is nothing to "
            "check; expected @mup() or @completep()."
        )
    sizes = tuple(widths or depths)
    if bool(widths) == bool(depths) or len(set(sizes)) < 2 or min(sizes) < 1:
        raise UserError(
            f"--widths {list(widths)}, --depths {list(depths)}: expected two sizes or "
            "more of one of them."
        )
    if steps < 1:
        raise UserError(f"--steps {steps}: expected at least 1.")
    schedule = Constant(learning_rate=experiment.optimizer.schedule.learning_rate)
    experiment = dataclasses.replace(
        with_vocab_size(experiment),
        optimizer=dataclasses.replace(experiment.optimizer, schedule=schedule),
        init_from=(),
        freeze=(),
    )
    experiment.data.prepare()
    axis = "width" if widths else "depth"
    magnitudes = {}
    for name, each in (("standard", None), (how.gin_name, how)):
        changed = dataclasses.replace(experiment, parametrization=each)
        found = [_measure(_at_size(changed, axis, s), axis, steps) for s in sizes]
        magnitudes[name] = {
            activation: np.array([of_size[activation] for of_size in found])
            for activation in found[0]
        }
    return CoordinateCheck(axis, sizes, magnitudes)


def _at_size(experiment: Experiment, axis: str, size: int) -> Experiment:
    """The experiment with a model of another width or depth, resolved."""
    objective, first = experiment.objective, first_stack(experiment.objective.model)
    old = first.embed_dim if axis == "width" else first.num_layers
    model = resized(
        objective.model, **{axis: Fraction(size, old)}, asked=f"--{axis}s {size}"
    )
    objective = dataclasses.replace(objective, model=model)
    return resolve(dataclasses.replace(experiment, objective=objective))


def _measure(experiment: Experiment, axis: str, steps: int) -> dict[str, list[float]]:
    """Mean |x| of each activation, before each update and after the last."""
    run, objective = experiment.train, experiment.objective
    mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
    plan = plan_run(experiment, mesh, rules)
    step = TracedStep(experiment, plan, mesh, rules)
    forward = jax.jit(lambda variables, batch: _record(objective, variables, batch))
    batches = experiment.data.train_batches(
        run.batch_size, range(run.batch_size), run.seed
    )
    found: dict[str, list[float]] = {}
    with on_mesh(mesh, rules):
        state, first = plan.init(), None
        for i in range(steps + 1):
            rows = global_batch(
                next(batches), batch_sharding(mesh, rules), run.batch_size
            )
            first = rows if first is None else first
            # Of the same rows at every step.
            for name, x in _named(forward(state.variables, first), axis).items():
                found.setdefault(name, []).append(x)
            if i < steps:
                state, _ = step(state, rows, 0)
    batches.close()
    return found


def _record(
    objective: Objective, variables: dict, batch: dict
) -> dict[str, Float[Array, "..."]]:
    """Mean |x| of outputs of stacks, by layer, of heads and of projections."""
    found: dict[str, Array] = {}
    model, last = objective.model, None

    def mean(x: Array) -> Array:
        return jnp.abs(x.astype(jnp.float32)).mean()

    def intercept(call, args, kwargs, context):
        nonlocal last
        module, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, Stack):
            x, shared, cache, *_ = *args, None
            out = call(x, shared, cache, True)
            # [layers + 1]
            found[path] = jax.vmap(mean)(out["hidden_states"])
            last = out["hidden"]
            return out
        out = call(*args, **kwargs)
        # Heads of models of tokens may be called inside of a loop over chunks.
        if isinstance(module, Dense) and not isinstance(model, PredictsTokens):
            found[path] = mean(out)
        return out

    with nn.intercept_methods(intercept):
        objective.loss(variables, batch, None)
    if isinstance(model, PredictsTokens):
        logits = model.apply({"params": variables["params"]}, last, method="head")
        # Vocabulary padding is far below any logit.
        found["logits"] = mean(logits[..., : model.vocab_size])
    return found


def _named(means: dict[str, Array], axis: str) -> dict[str, float]:
    """Scalars by activation; those of layers by number, or by the part of the depth."""
    found: dict[str, float] = {}
    for path, values in jax.device_get(means).items():
        if not values.ndim:
            found[path] = float(values)
            continue
        layers = len(values) - 1
        parts = [i / layers for i in range(layers + 1)]
        for part in parts if axis == "width" else _QUARTERS:
            i = math.floor(part * layers + 0.5)
            name = f"{path}, block {i}" if axis == "width" else f"{path}, {part:.0%}"
            if i in (0, layers):
                name = f"{path}, {'output' if i else 'input'}"
            found[name] = float(values[i])
    return found
