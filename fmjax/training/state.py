"""The training state, and the sharding of each of its leaves."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fmjax.objectives.objective import Objective
from fmjax.optim.freezing import Freeze, Freezing, plan_freezing
from fmjax.optim.layer_decay import decay_by_layer
from fmjax.optim.parametrization import combine
from fmjax.optim.peft.peft import Peft, PeftPlan
from fmjax.optim.scaling import rate_groups, scale_init
from fmjax.optim.state_sharding import state_specs
from fmjax.sharding.mesh import on_mesh
from fmjax.sharding.rules import (
    LogicalRules,
    logical_axes,
    named_shardings,
    param_specs,
)
from fmjax.training.bad_steps import STOP, BadSteps, Guard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The training state, which a step maps to the next one.

    Attributes:
      step: int32 scalar, updates done so far.
      params: unboxed parameters: float32 if they are ever trained, otherwise in the
        dtype of their `Freeze`.
      extra: the other collections by name (batch statistics, a queue, a teacher), as
        the objective's loss returned them in the last good step.
      opt_state: state of the optimizer.
      ema: moving averages of the parameters that are ever trained, with
        `optax.MaskedNode` for the others; None if no averages are kept.
      guard: statistics to detect bad steps, see `fmjax.training.bad_steps`; None
        if no update is ever skipped.
    """

    step: jax.Array
    params: Any
    extra: dict[str, Any]
    opt_state: Any
    ema: Any = None
    guard: Guard | None = None

    @property
    def variables(self) -> dict:
        """The variables for the objective's loss: {"params": …, other collections}."""
        return {"params": self.params, **self.extra}

    @property
    def eval_variables(self) -> dict:
        """The variables for evaluation, with averaged parameters where kept."""
        params = self.params
        if self.ema is not None:
            params = combine(self.ema, params)
        return {"params": params, **self.extra}


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """Shapes, shardings and initializer of a state, before any of it is allocated.

    Attributes:
      axes: logical axes of the variables, a tuple of names for each.
      transformation: the optimizer, as a gradient transformation.
      freezing: which parameters are trained at which steps.
      bad_steps: the policy for bad steps.
      shapes: a State of ShapeDtypeStructs with their shardings.
      shardings: a State of NamedShardings.
      rate_groups: factor of the learning rate → number of parameters that have it.
      peft: what is added to the model's parameters; None for nothing.
      coded: NamedShardings of the weights that are kept as codes, by path.
      update_shardings: NamedShardings like the parameters, of gradients and updates
        where the optimizer's state is sharded further than they are; None elsewhere.
      init: () → State, compiled; makes each leaf in its sharding.
    """

    axes: dict
    transformation: optax.GradientTransformation
    freezing: Freezing
    bad_steps: BadSteps
    shapes: State
    shardings: State
    rate_groups: dict[float, int]
    peft: PeftPlan | None
    coded: dict[str, jax.sharding.NamedSharding]
    update_shardings: Any
    init: Any

    @property
    def decoded_shapes(self) -> Any:
        """Shapes of the parameters if no weight were kept as codes."""
        return self.shapes.params if self.peft is None else self.peft.decoded_shapes

    def describe(self, mesh: jax.sharding.Mesh) -> str:
        """A line for the log: number of parameters, mesh, and kind of device."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.decoded_shapes))
        axes = (f"{name}={n}" for name, n in mesh.shape.items() if n > 1)
        shape = " × ".join(axes) or "1 device"
        kind = mesh.devices.flat[0].device_kind
        return f"{size:,} parameters on {shape} ({kind})"


def abstract_variables(
    objective: Objective, peft: Peft | None = None
) -> tuple[dict, dict]:
    """Logical axes and shapes of an objective's variables, without allocating them.

    Args:
      objective: whose model's they are.
      peft: adds parameters to the model's; None for none.

    Returns:
      A tree of tuples of names, and a tree of ShapeDtypeStructs.
    """
    trace = _abstract_variables
    if not _has_hash(objective):
        trace = trace.__wrapped__
    # A caller may change its trees.
    axes, shapes = (
        jax.tree.map(lambda leaf: leaf, tree, is_leaf=_is_axes)
        for tree in trace(objective, jax.config.jax_enable_x64)
    )
    if peft is None:
        return axes, shapes
    plan = peft.plan(axes["params"], shapes["params"])
    return axes | {"params": plan.axes}, shapes | {"params": plan.shapes}


# An import, an export or the start of a run asks several times, and tracing a model's
# initializers takes a second or more.
@functools.lru_cache(maxsize=8)
def _abstract_variables(objective: Objective, x64: bool) -> tuple[dict, dict]:
    del x64  # JAX's setting, on which dtypes depend
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    return logical_axes(boxed), nn.unbox(boxed)


def _has_hash(objective: Objective) -> bool:
    # An objective of a user may have a list among its fields.
    try:
        hash(objective)
    except TypeError:
        return False
    return True


def _is_axes(value: Any) -> bool:
    return isinstance(value, tuple)


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
    optimizer_rules: LogicalRules | None = None,
    scaling: Any = None,
    rate_factor: float = 1.0,
    peft: Peft | None = None,
) -> StatePlan:
    """Plans the state of a run; nothing is allocated.

    Args:
      objective: the training objective.
      optimizer: a configurable of `fmjax.optim.optimizers`.
      mesh: that the state is sharded over.
      rules: logical to mesh axes.
      train_steps: updates of the run, for schedules that depend on it.
      seed: of the initial parameters.
      ema: whether to keep averaged parameters.
      freeze: parameters that are not trained before a given step, or never.
      bad_steps: the policy for bad steps.
      optimizer_rules: logical to mesh axes of the optimizer's state and of averaged
        parameters; None for those of the parameters.
      scaling: a `fmjax.optim.scaling.Scaling` per parameter; None for no factors.
      rate_factor: of the learning rate.
      peft: freezes the model's parameters and adds others; None for neither.
    """
    axes, shapes = abstract_variables(objective)
    added = None if peft is None else peft.plan(axes["params"], shapes["params"])
    if added is not None:
        axes, shapes = axes | {"params": added.axes}, shapes | {"params": added.shapes}
        scaling = added.scaling(scaling)
    if (decay := optimizer.layer_decay) != 1.0:
        binding = f"{optimizer.gin_name}.layer_decay"
        scaling = decay_by_layer(scaling, shapes["params"], decay, binding)
    specs = kept = param_specs(axes, shapes, mesh, rules)
    if optimizer_rules not in (None, rules):
        kept = param_specs(axes, shapes, mesh, optimizer_rules)
    never = {} if added is None else added.never_trained
    freezing = plan_freezing(freeze, shapes["params"], never)
    tx = optimizer.build(axes["params"], train_steps, freezing, scaling, rate_factor)
    guard = jax.eval_shape(bad_steps.init)
    shardings = named_shardings(
        State(
            step=jax.sharding.PartitionSpec(),
            params=specs["params"],
            extra={name: tree for name, tree in specs.items() if name != "params"},
            opt_state=state_specs(tx, shapes["params"], kept["params"]),
            ema=freezing.ever_trained(kept["params"]) if ema else None,
            guard=jax.tree.map(lambda _: jax.sharding.PartitionSpec(), guard),
        ),
        mesh,
    )

    def init() -> State:
        key = jax.random.key(seed)
        variables = nn.unbox(objective.init(key))
        params = variables.pop("params")
        if added is not None:
            params = added.init(jax.random.fold_in(key, 1), params)
        if scaling is not None:
            params = scale_init(scaling, params)
        params = freezing.cast(params)
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
            compiled.eval_shape(),  # this trace is that of the call below
            shardings,
        )

    def make() -> State:
        with on_mesh(mesh, rules):
            return compiled()

    updates = None if kept is specs else named_shardings(kept["params"], mesh)
    groups = rate_groups(scaling, shapes.params)
    coded = {}
    if added is not None and added.coded:
        weights = {path: weight.names for path, weight in added.coded.items()}
        of_base = {path: added.base_shapes[path] for path in weights}
        coded = named_shardings(param_specs(weights, of_base, mesh, rules), mesh)
    return StatePlan(
        axes=axes,
        transformation=tx,
        freezing=freezing,
        bad_steps=bad_steps,
        shapes=shapes,
        shardings=shardings,
        rate_groups=groups,
        peft=added,
        coded=coded,
        update_shardings=updates,
        init=make,
    )
