"""The state of a run, and where every leaf of it lies on the mesh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fmjax.objectives.objective import Objective
from fmjax.optim.freezing import Freeze, Freezing, plan_freezing
from fmjax.optim.parametrization import combine
from fmjax.optim.state_sharding import state_specs
from fmjax.sharding.mesh import on_mesh
from fmjax.sharding.rules import (
    LogicalRules,
    logical_axes,
    named_shardings,
    param_specs,
)
from fmjax.training.faults.bad_steps import STOP, BadSteps, Guard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a step takes and gives.

    Attributes:
      step: int32 scalar, updates done so far.
      params: unboxed parameters, float32 where they are trained, those that are frozen
        for ever in the dtype of their `Freeze`.
      extra: the other collections by name (batch statistics, a queue, a teacher), as
        the objective's loss left them in the last good step.
      opt_state: the optimizer's.
      ema: averages of the parameters that are ever trained, with `optax.MaskedNode` for
        the others; None where none are kept.
      guard: what steps are judged by, see `fmjax.training.faults.bad_steps`; None
        where no update is ever held back.
    """

    step: jax.Array
    params: Any
    extra: dict[str, Any]
    opt_state: Any
    ema: Any = None
    guard: Guard | None = None

    @property
    def variables(self) -> dict:
        """What the objective's loss takes."""
        return {"params": self.params, **self.extra}

    @property
    def eval_variables(self) -> dict:
        """The same with the averaged parameters where there are any."""
        params = self.params
        if self.ema is not None:
            params = combine(self.ema, params)
        return {"params": params, **self.extra}


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """How to make a state, known before any of it is allocated.

    Attributes:
      axes: logical names of the variables, a tuple for each.
      transformation: the optimizer, as a gradient transformation.
      freezing: which parameters are trained when.
      bad_steps: what counts as a bad step, and what is to be done about it.
      shapes: a State of ShapeDtypeStructs with their shardings.
      shardings: a State of NamedShardings.
      init: () → State, compiled to make each leaf where it belongs.
    """

    axes: dict
    transformation: optax.GradientTransformation
    freezing: Freezing
    bad_steps: BadSteps
    shapes: State
    shardings: State
    init: Any

    def describe(self, mesh: jax.sharding.Mesh) -> str:
        """A line that says how much there is, and where."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params))
        axes = (f"{name}={n}" for name, n in mesh.shape.items() if n > 1)
        shape = " × ".join(axes) or "1 device"
        kind = mesh.devices.flat[0].device_kind
        return f"{size:,} parameters on {shape} ({kind})"


def abstract_variables(objective: Objective) -> tuple[dict, dict]:
    """(logical axes, shapes) of the variables, as trees of tuples and of structs."""
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    return logical_axes(boxed), nn.unbox(boxed)


def plan_state(
    objective: Objective,
    optimizer: Any,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
    *,
    train_steps: int,
    seed: int = 0,
    ema: bool = False,
    freeze: Sequence[Freeze] = (),
    bad_steps: BadSteps = STOP,
) -> StatePlan:
    """Plans the state of a run; nothing is allocated.

    Args:
      objective: what is minimized.
      optimizer: a configurable of `fmjax.optim.optimizers`.
      mesh: where the state will lie.
      rules: logical to mesh axes.
      train_steps: the end of the run, for schedules that read it.
      seed: of the parameters.
      ema: whether to keep averaged parameters.
      freeze: parameters that do not change until a step.
      bad_steps: what counts as a bad step.
    """
    axes, shapes = abstract_variables(objective)
    specs = param_specs(axes, shapes, mesh, rules)
    freezing = plan_freezing(freeze, shapes["params"])
    tx = optimizer.build(axes["params"], train_steps, freezing)
    guard = jax.eval_shape(bad_steps.init)
    shardings = named_shardings(
        State(
            step=jax.sharding.PartitionSpec(),
            params=specs["params"],
            extra={name: tree for name, tree in specs.items() if name != "params"},
            opt_state=state_specs(tx, shapes["params"], specs["params"]),
            ema=freezing.ever_trained(specs["params"]) if ema else None,
            guard=jax.tree.map(lambda _: jax.sharding.PartitionSpec(), guard),
        ),
        mesh,
    )

    def init() -> State:
        variables = nn.unbox(objective.init(jax.random.key(seed)))
        params = freezing.cast(variables.pop("params"))
        return State(
            step=jnp.int32(0),
            params=params,
            extra=variables,
            opt_state=tx.init(params),
            ema=freezing.ever_trained(params) if ema else None,
            guard=bad_steps.init(),
        )

    with on_mesh(mesh, rules):
        compiled = jax.jit(init, out_shardings=shardings)
        shapes = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(
                s.shape, s.dtype, sharding=sharding
            ),
            jax.eval_shape(init),
            shardings,
        )

    def make() -> State:
        with on_mesh(mesh, rules):
            return compiled()

    return StatePlan(axes, tx, freezing, bad_steps, shapes, shardings, make)
