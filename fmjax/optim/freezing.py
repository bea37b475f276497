"""Freezing: parameters that are not trained before a given step, or never.

The steps of a run are divided into phases; within a phase the same parameters are
trained. A phase is identified by its first step.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import optax
from flax import traverse_util

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.parameter_paths import Pattern, Slot, slots
from fmjax.optim.axes import Names, map_by_axes
from fmjax.optim.parametrization import cast, partition

NEVER = math.inf
# The dtype of trained parameters.
TRAINED_DTYPE = "float32"
_NONE: Mapping[str, str] = types.MappingProxyType({})


@configurable("freeze")
@dataclasses.dataclass(frozen=True)
class Freeze:
    """Freezes parameters: bitwise unchanged, without gradient, decay or momentum.

    Frozen parameters are constants for the others: the gradient norm that is clipped is
    that of the trained parameters alone. A parameter that is unfrozen later starts with
    moments of zero and its own bias correction, as in PyTorch's optimizers, which skip
    parameters whose gradient is None; its learning rate is that of the run's step. A
    parameter that is never trained has no optimizer state. The step of a new phase is
    compiled when the phase begins.

    Attributes:
      paths: patterns, such as 'encoder_stack/**', see `fmjax.models.parameter_paths`.
      until: number of updates that do not change them; None for all updates.
      dtype: of the parameters in memory and in checkpoints, to which they are rounded
        when the run starts. Must be float32 if `until` is given.
    """

    paths: tuple[str, ...]
    until: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = TRAINED_DTYPE

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "paths", len(self.paths) > 0, "one pattern or more")
        fits = self.until is None or self.until >= 1
        require(self, "until", fits, "1 or more, or None for ever")
        fits = self.until is None or self.dtype == TRAINED_DTYPE
        expected = (
            f"{TRAINED_DTYPE!r}, as freeze.until = {self.until} trains these "
            "parameters later; or freeze.until = None"
        )
        require(self, "dtype", fits, expected)


@dataclasses.dataclass(frozen=True)
class Freezing:
    """Which parameters of a model are trained at which steps.

    Attributes:
      first_steps: a tree like the parameters: the first step at which each is trained;
        0 if it is not frozen, or `NEVER`.
      dtypes: a tree like the parameters: the name of each one's dtype; None if all are
        float32.
    """

    first_steps: Any
    dtypes: Any = None

    @property
    def begins(self) -> list[float]:
        """The steps at which parameters begin to be trained, in order."""
        return sorted(set(jax.tree.leaves(self.first_steps)))

    def phase(self, step: int) -> int:
        """The phase of a step: the first step of that phase."""
        return max((int(s) for s in self.begins if 0 < s <= step), default=0)

    def trained(self, phase: int) -> Any:
        """A tree like the parameters: True where a parameter is trained in a phase."""
        return jax.tree.map(lambda first: first <= phase, self.first_steps)

    def partition(self, tree: Any, phase: int) -> Any:
        """A tree like the parameters, without the leaves not trained in a phase."""
        return partition(tree, self.trained(phase))

    def ever_trained(self, tree: Any) -> Any:
        """A tree like the parameters, without the leaves that are never trained."""
        return partition(
            tree, jax.tree.map(lambda first: first != NEVER, self.first_steps)
        )

    def cast(self, params: Any) -> Any:
        """The parameters, each in its dtype."""
        return params if self.dtypes is None else cast(params, self.dtypes)

    def describe(self, shapes: Any) -> list[str]:
        """Lines for the log: one per `until` step and dtype of frozen parameters."""
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
        firsts = jax.tree.leaves(self.first_steps)
        dtypes = jax.tree.leaves(self.dtypes) or [TRAINED_DTYPE] * len(sizes)
        counts: dict[tuple[float, str], int] = {}
        for size, kind in zip(sizes, zip(firsts, dtypes)):
            counts[kind] = counts.get(kind, 0) + size
        lines = []
        for (begin, dtype), count in sorted(counts.items()):
            if begin > 0:
                until = "for ever" if begin == NEVER else f"until step {begin}"
                kept = "" if dtype == TRAINED_DTYPE else f", kept in {dtype}"
                lines.append(f"{count:,} of them are frozen {until}{kept}")
        return lines


def plan_freezing(
    rules: Sequence[Freeze], shapes: Any, never: Mapping[str, str] = _NONE
) -> Freezing:
    """Applies rules of freezing; of several for a parameter, the longest one applies.

    Args:
      rules: what to freeze.
      shapes: the nested dict of parameters, or of their shapes.
      never: path of an array that no rule need match, and that is never trained → its
        dtype.

    Raises:
      UserError: a pattern matches nothing, or a part of an array; two dtypes are asked
        for; or nothing is left to train.
    """
    leaves = traverse_util.flatten_dict(shapes, sep="/")
    where = slots({path: leaf.shape for path, leaf in leaves.items()})
    first: dict[str, float] = dict.fromkeys(where, 0)
    forever: dict[str, str] = {}
    for path, slot in where.items():
        if slot.array in never:
            first[path], forever[path] = NEVER, never[slot.array]
    for rule in rules:
        until = NEVER if rule.until is None else rule.until
        for text in rule.paths:
            for path in Pattern(text, "freeze.paths").find(where, "the model"):
                first[path] = max(first[path], until)
                if until != NEVER:
                    continue
                dtype = forever.setdefault(path, rule.dtype)
                if dtype != rule.dtype:
                    raise UserError(
                        f"freeze.dtype: {path!r} is kept in {dtype} by one rule of "
                        f"experiment.freeze or by peft.base_dtype, in {rule.dtype} by "
                        "another; expected one of them."
                    )
    of_arrays = _one_each(
        where,
        first,
        "freeze.paths freezes some layers of {!r} longer than others",
    )
    if 0 not in of_arrays.values():
        raise UserError(
            "freeze.paths freezes every parameter of the model, or all that peft does "
            "not, so that nothing is trained; expected fewer."
        )
    dtypes = _one_each(
        where,
        {path: forever.get(path, TRAINED_DTYPE) for path in where},
        "freeze.dtype keeps some layers of {!r} in another dtype than others",
    )
    return Freezing(
        traverse_util.unflatten_dict(of_arrays, sep="/"),
        traverse_util.unflatten_dict(dtypes, sep="/")
        if set(dtypes.values()) != {TRAINED_DTYPE}
        else None,
    )


def _one_each(where: dict[str, Slot], of_paths: dict[str, Any], found: str) -> dict:
    """The value of each array, given by path; all layers of an array must agree."""
    of_arrays: dict[str, Any] = {}
    for path, slot in where.items():
        if of_arrays.setdefault(slot.array, of_paths[path]) != of_paths[path]:
            raise UserError(
                f"{found.format(slot.array)}, but layers that are scanned are one "
                "array. Expected all of them, or transformer.scan_layers = False."
            )
    return of_arrays


def by_first_step(
    make: Callable[[Any], optax.GradientTransformation],
    axes: Any,
    freezing: Freezing,
) -> optax.GradientTransformation:
    """A transformation with a separate state for each first step of training.

    A state counts updates from the first one that has gradients of its parameters.

    Args:
      make: a masked tree of logical names → a transformation of those parameters.
      axes: the tree of logical names.
      freezing: of the same parameters.
    """
    # Named by order, not by step, so that a resumed run may freeze for longer.
    groups = {begin: f"group_{i}" for i, begin in enumerate(freezing.begins)}

    def one_group(begin: float) -> optax.GradientTransformation:
        if begin == NEVER:
            return optax.set_to_zero()

        def own(names: Names, first: float):
            return names if first == begin else optax.MaskedNode()

        inner = make(map_by_axes(own, axes, freezing.first_steps))

        def update_fn(updates, state, params=None):
            if not jax.tree.leaves(updates):
                return updates, state
            return inner.update(updates, state, params)

        return optax.GradientTransformation(inner.init, update_fn)

    return optax.partition(
        {group: one_group(begin) for begin, group in groups.items()},
        jax.tree.map(groups.__getitem__, freezing.first_steps),
    )
