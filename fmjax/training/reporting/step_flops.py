"""Matrix FLOPs of a training step, by the model's formula, reduced by freezing."""

import contextlib
import functools
from collections.abc import Callable

import jax

from fmjax.models.flops import visible_keys_alone
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Batch, RowShapes, total
from fmjax.training.reporting.traced_products import training_flops
from fmjax.training.state import StatePlan


class StepFlops:
    """Matrix FLOPs of a step in each phase of freezing.

    Without freezing they are those of the objective's formula: 6 per weight and use of
    it (PaLM, Chowdhery et al. 2022, appendix B), plus those of attention. With frozen
    parameters the formula is multiplied by a ratio: the FLOPs of the products of such a
    step over those of a step that trains all parameters, see `traced_products`.

    Args:
      objective: of the run.
      plan: of its state.
      rows: the shape of each array of a row.
      batch_size: rows of the global batch.
      causal: whether attention counts only the keys that a query sees, as Llama 3's
        figures do, instead of all.
    """

    def __init__(
        self,
        objective: Objective,
        plan: StatePlan,
        rows: RowShapes,
        batch_size: int,
        causal: bool = False,
    ):
        self._causal = causal
        self._objective, self._plan = objective, plan
        self._rows, self._batch_size = rows, batch_size
        self._shares: dict[int, float] = {}

    def __call__(self, phase: int, batch: Batch) -> float:
        """FLOPs of a step in a phase.

        Args:
          phase: see `fmjax.optim.freezing`.
          batch: a global batch, or its shapes.
        """
        if phase not in self._shares:
            self._shares[phase] = self._share(phase, batch)
        return self._formula * self._shares[phase]

    @functools.cached_property
    def _formula(self) -> float:
        params = self._plan.decoded_shapes
        with visible_keys_alone() if self._causal else contextlib.nullcontext():
            per_row = self._objective.train_flops_per_row(params, self._rows)
        return self._batch_size * per_row

    def _share(self, phase: int, batch: Batch) -> float:
        trained = jax.tree.leaves(self._plan.freezing.trained(phase))
        if all(trained):
            return 1.0
        count = self._counter(batch)
        return count(trained) / count([True] * len(trained))

    def _counter(self, batch: Batch) -> Callable[[list[bool]], float]:
        """A function (trained flag of each parameter) → FLOPs of traced products."""
        B = next(iter(batch.values())).shape[0]
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), B))

        def loss(params, extra, batch, keys):
            out = self._objective.loss({"params": params, **extra}, batch, keys)
            return total(out.terms)

        shapes = self._plan.shapes
        jaxpr = jax.make_jaxpr(loss)(shapes.params, shapes.extra, batch, keys)
        inputs = len(jaxpr.jaxpr.invars)

        def count(trained: list[bool]) -> float:
            rest = [False] * (inputs - len(trained))
            return training_flops(jaxpr, trained + rest)

        return count
