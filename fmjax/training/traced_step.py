"""The train step of a run, traced before anything is allocated or compiled."""

from typing import Any

import jax
from flax.errors import ScopeParamNotFoundError

from fmjax.errors import UserError
from fmjax.models.layers.adapters import read_adapters
from fmjax.objectives.terms import Batch
from fmjax.sharding.mesh import batch_sharding, on_mesh
from fmjax.sharding.rules import LogicalRules
from fmjax.sharding.xla_options import xla_options
from fmjax.training.accumulation import Metrics
from fmjax.training.activations import StackInputs, kept_bytes, traced_stacks
from fmjax.training.experiment import Experiment
from fmjax.training.memory import check_memory
from fmjax.training.norms import Norms
from fmjax.training.state import State, StatePlan
from fmjax.training.step import make_train_step


class TracedStep:
    """The jitted train step of a run: (state, global batch, phase) → (state, metrics).

    See `make_train_step`. A phase of freezing is traced once, from shapes alone, which
    needs neither data nor chips.

    Args:
      experiment: with data and an optimizer; its caches need not be built.
      plan: of the state.
      mesh: of the run, whose devices need not be of this machine.
      rules: logical to mesh axes.

    Attributes:
      batch: shapes and dtypes of a global batch.
      norms: what train.norms measures; None for nothing.
    """

    def __init__(
        self,
        experiment: Experiment,
        plan: StatePlan,
        mesh: jax.sharding.Mesh,
        rules: LogicalRules,
    ):
        run, data = experiment.train, experiment.data
        self._plan, self._mesh, self._rules = plan, mesh, rules
        self._accumulates = run.microbatches > 1
        self._activations: dict[int, float] = {}
        self._traced: set[int] = set()
        self._model = experiment.objective.model.gin_name
        dtypes, sharding = data.row_dtypes(), batch_sharding(mesh, rules)
        self.batch: dict[str, Any] = {
            name: jax.ShapeDtypeStruct(
                (run.batch_size, *shape), dtypes[name], sharding=sharding
            )
            for name, shape in data.row_shapes().items()
        }
        self.norms = None
        if run.norms is not None:
            self.norms = Norms(run.norms, plan.shapes.params, plan.freezing)
        self._step = make_train_step(
            experiment.objective,
            plan,
            experiment.learning_rate,
            mesh,
            rules,
            seed=run.seed,
            microbatches=run.microbatches,
            ema_decay=run.ema_decay,
            norms=self.norms,
            noise_scale=run.noise_scale is not None,
            adversary=experiment.adversary,
            pixels=experiment.pixel_range,
            compiler_options=xla_options(mesh.devices.flat[0], run.xla_options),
        )

    def __call__(self, state: State, batch: Batch, phase: int) -> tuple[State, Metrics]:
        """Makes one update; a new phase of freezing is checked and compiled first."""
        self.check(phase)
        return self._step(state, batch, phase)

    @property
    def activations(self) -> float:
        """Lower bound of a step's activations, in bytes per device; 0 if unknown."""
        return max(self._activations.values(), default=0.0)

    def trace(
        self, phase: int = 0
    ) -> tuple[jax.stages.Traced, dict[tuple[str, ...], StackInputs]]:
        """The traced step, and the inputs of its stacks if it was not traced before.

        Raises:
          UserError: the model cannot be computed on this mesh, or on these rows.
        """
        with (
            on_mesh(self._mesh, self._rules),
            traced_stacks() as stacks,
            read_adapters() as read,
        ):
            # Cached by JAX: a call compiles this trace.
            try:
                traced = self._step.trace(self._plan.shapes, self.batch, phase)
            except ScopeParamNotFoundError as error:
                self._refuse_coded(error)
                raise
        if phase not in self._traced and self._plan.peft is not None:
            self._plan.peft.check_read(read, self._model)
        self._traced.add(phase)
        return traced, stacks

    def _refuse_coded(self, error: ScopeParamNotFoundError) -> None:
        """Raises a UserError if a layer looked for a weight that is kept as codes."""
        peft = self._plan.peft
        for path in peft.coded if peft is not None else ():
            folder, _, name = path.rpartition("/")
            if f'"{name}"' in str(error) and f'"/{folder}"' in str(error):
                raise UserError(
                    f"{peft.coding.gin_name}.paths: {path!r} is read by @{self._model}"
                    "() in another way than by products, so that it cannot be kept as "
                    "codes; expected patterns that do not match it."
                ) from None

    def check(self, phase: int) -> None:
        """Traces the step of a phase of freezing and checks its memory estimate, once.

        Raises:
          UserError: as of `trace`; or the devices have too little memory.
        """
        if phase in self._activations:
            return
        _, stacks = self.trace(phase)
        trained = self._plan.freezing.trained(phase)
        kept = kept_bytes(stacks, trained, self._mesh, self._rules)
        self._activations[phase] = kept
        check_memory(self._plan, self._mesh, phase, kept, self._accumulates)
