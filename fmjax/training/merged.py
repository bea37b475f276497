"""A run of adapters, read as the whole weights that compute the same."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import traverse_util
from jaxtyping import Array

from fmjax.errors import UserError
from fmjax.models.contracts import PredictsTokens, TiesEmbeddings
from fmjax.models.layers.adapters import LORA
from fmjax.models.untie import HEAD, TABLE, head_of, is_tied, untied
from fmjax.objectives.objective import Objective
from fmjax.optim.axes import Names
from fmjax.optim.peft.merge import check_mergeable, merged_array, sources
from fmjax.optim.peft.peft import Peft, PeftPlan
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.checkpoint.read_model import find_model
from fmjax.training.experiment import Experiment
from fmjax.training.state import abstract_variables

# Bytes of weights that are read at once.
_READ_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """How whole weights follow from the parameters of a run of adapters.

    Attributes:
      objective: with the model of the whole weights. Its head has weights of its own
        where an adapter changes the table that the head was tied to.
      peft: the run's parameters.
      has_own_head: whether the head got weights of its own.
    """

    objective: Objective
    peft: PeftPlan
    has_own_head: bool

    @classmethod
    def of(cls, objective: Objective, peft: Peft) -> "MergePlan":
        """The plan of a run.

        Args:
          objective: of the run.
          peft: of the run.

        Raises:
          UserError: what a method adds cannot be merged.
        """
        axes, shapes = abstract_variables(objective)
        plan = peft.plan(axes["params"], shapes["params"])
        check_mergeable(plan.added)
        model = objective.model
        changed = f"{TABLE}{LORA}/a" in plan.added
        if changed and _has_fixed_head(model):
            raise UserError(
                f"{TABLE!r} cannot be merged with its adapter: @{model.gin_name}() "
                "predicts tokens by the table without it."
            )
        own_head = changed and is_tied(model)
        if own_head:
            objective = dataclasses.replace(objective, model=untied(model))
        return cls(objective, plan, own_head)

    @functools.cached_property
    def axes(self) -> dict[str, Names]:
        """Logical names of the whole weights, by path."""
        return self._trees[0]

    @functools.cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the whole weights, by path."""
        return self._trees[1]

    def sources(self, path: str) -> list[str]:
        """Paths of the arrays of which a weight is made; coded ones as weights."""
        if self.has_own_head and path == HEAD:
            return [TABLE]
        return sources(path, self.peft.added)

    def array(self, path: str, arrays: Mapping[str, Array]) -> Array:
        """A weight, float32 where it is changed.

        Args:
          path: of the weight.
          arrays: those of `sources` or more, by path.
        """
        if self.has_own_head and path == HEAD:
            return head_of(arrays[TABLE])
        return merged_array(path, arrays, self.axes)

    def merge(self, params: Any, dtype: str | None = None) -> dict:
        """All weights of parameters in memory.

        Args:
          params: nested dict of the run's parameters.
          dtype: of all weights; None for that which each had.
        """
        flat = traverse_util.flatten_dict(params, sep="/")
        found = {}
        for path in self.shapes:
            arrays = {}
            for name in self.sources(path):
                is_coded = name in self.peft.coded
                arrays[name] = self.peft.decode(name, flat) if is_coded else flat[name]
            kept = next(iter(arrays.values())).dtype
            found[path] = self.array(path, arrays).astype(dtype or kept)
        return traverse_util.unflatten_dict(found, sep="/")

    @functools.cached_property
    def _trees(self) -> tuple[dict[str, Names], dict[str, jax.ShapeDtypeStruct]]:
        trees = (tree["params"] for tree in abstract_variables(self.objective))
        axes, shapes = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)
        return axes, shapes


class MergedState:
    """A checkpoint of a run of adapters, read on the host as whole weights.

    Attributes:
      plan: of the weights.
      saved: the checkpoint.
      extra: the other collections, by name.
    """

    def __init__(
        self, run_dir: pathlib.Path, experiment: Experiment, step: int | None = None
    ):
        """Opens the checkpoint.

        Args:
          run_dir: the run directory.
          experiment: of the run.
          step: of the checkpoint; None for the newest.

        Raises:
          UserError: it is no run of adapters, these cannot be merged, or there is no
            such checkpoint.
        """
        if experiment.peft is None:
            raise UserError(
                f"{run_dir} is no run of adapters (experiment.peft = None); there is "
                "nothing to merge."
            )
        objective, peft = experiment.objective, experiment.peft
        self.plan = MergePlan.of(objective, peft)
        # On the host, since the model may not fit a single accelerator.
        mesh = MeshConfig().build(jax.local_devices(backend="cpu")[:1])
        found = find_model(
            run_dir, objective, mesh, MeshConfig().all_rules, step, peft=peft
        )
        self.saved, self._wanted, extra = found
        self.extra = self.saved.read_extra(extra)

    def read(self, paths: Iterable[str]) -> dict[str, Array]:
        """Weights by path, float32 where adapters have changed them.

        Coded weights are those that the codes stand for.
        """
        paths = [*paths]
        needed = {name for path in paths for name in self.plan.sources(path)}
        arrays = self.saved.read_params({name: self._wanted[name] for name in needed})
        peft = self.plan.peft
        for name in needed & peft.coded.keys():
            arrays[name] = peft.decode(name, peft.encode(name, arrays[name]))
        return {path: self.plan.array(path, arrays) for path in paths}

    def groups(self) -> Iterator[list[str]]:
        """Paths of all weights, in groups of up to `_READ_BYTES` to be read at once."""
        group: list[str] = []
        size = 0
        for path, leaf in self.plan.shapes.items():
            more = 4 * leaf.size
            if group and size + more > _READ_BYTES:
                yield group
                group, size = [], 0
            group, size = [*group, path], size + more
        yield group

    def base(self, path: str) -> Array:
        """A weight of the base, without adapters, as it was before the run."""
        source = TABLE if self.plan.has_own_head and path == HEAD else path
        whole = self._wanted[source]
        for reference, base in zip(self.saved.references, self.saved.bases):
            # What the run has trained itself is in the base under the same name.
            name = reference.arrays.get(source, (source, ""))[0]
            if base.param_shapes.get(name) == whole.shape:
                array = base.read_params({name: whole})[name]
                return head_of(array) if source != path else array
        raise UserError(f"{self.saved.folder}: no base has {path!r}.")


def _has_fixed_head(model: Any) -> bool:
    """Whether a model predicts tokens by its table and cannot do so otherwise."""
    if isinstance(model, TiesEmbeddings) or not isinstance(model, PredictsTokens):
        return False
    return getattr(model, "language_head", True)
