"""Parameters that do not change until a step, or never do.

The steps of a run fall into phases: in each, the same parameters are trained. A phase
is named by the step at which it begins.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
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
# Of what is trained.
TRAINED_DTYPE = "float32"


@configurable("freeze")
@dataclasses.dataclass(frozen=True)
class Freeze:
    """Keeps parameters as they are, to the bit: no gradient, decay or momentum.

    The others are trained as if these were constants: their gradients alone are clipped
    by their norm. A parameter that is frozen for a while is then trained like one that
    is new to the optimizer, its moments beginning from zero and with their own bias
    correction (PyTorch's optimizers do the same where a gradient is None), at the
    learning rate of the run's step. One that is frozen for ever has no optimizer state.
    What is trained next is compiled when its step comes.

    Attributes:
      paths: patterns, see `fmjax.models.parameter_paths`; 'encoder_stack/**'.
      until: updates that leave them alone; the one after is the first to change them.
        None for all.
      dtype: in which the parameters are kept in memory and in checkpoints, rounded to
        it when the run starts. Those that are trained at some step are float32.
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
    """Which parameters of a model are trained when.

    Attributes:
      first_steps: a tree like the parameters: the step whose update is the first to
        change each; 0 for those that are not frozen, or `NEVER`.
      dtypes: a tree like the parameters: the name of the dtype that each is kept in;
        None where all are float32.
    """

    first_steps: Any
    dtypes: Any = None

    @property
    def begins(self) -> list[float]:
        """The steps at which parameters begin to be trained, in order."""
        return sorted(set(jax.tree.leaves(self.first_steps)))

    def phase(self, step: int) -> int:
        """The phase that a step is in."""
        return max((int(s) for s in self.begins if 0 < s <= step), default=0)

    def trained(self, phase: int) -> Any:
        """A tree like the parameters: whether each is trained in a phase."""
        return jax.tree.map(lambda first: first <= phase, self.first_steps)

    def partition(self, tree: Any, phase: int) -> Any:
        """The leaves, of a tree like the parameters, of those trained in a phase."""
        return partition(tree, self.trained(phase))

    def ever_trained(self, tree: Any) -> Any:
        """The leaves, of a tree like the parameters, of those trained in any phase."""
        return partition(
            tree, jax.tree.map(lambda first: first != NEVER, self.first_steps)
        )

    def cast(self, params: Any) -> Any:
        """The parameters in the dtypes that they are kept in."""
        return params if self.dtypes is None else cast(params, self.dtypes)

    def describe(self, shapes: Any) -> list[str]:
        """A line for each step until which something is frozen, and each dtype."""
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


def plan_freezing(rules: Sequence[Freeze], shapes: Any) -> Freezing:
    """Finds what rules freeze; where several name a parameter, the longest holds.

    Args:
      rules: what to freeze.
      shapes: the nested dict of parameters, or of their shapes.

    Raises:
      UserError: a pattern matches nothing, or a part of an array; two dtypes are asked
        for; or nothing is left to train.
    """
    leaves = traverse_util.flatten_dict(shapes, sep="/")
    where = slots({path: leaf.shape for path, leaf in leaves.items()})
    first: dict[str, float] = dict.fromkeys(where, 0)
    forever: dict[str, str] = {}
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
                        f"experiment.freeze, in {rule.dtype} by another; expected one "
                        "of them."
                    )
    of_arrays = _one_each(
        where,
        first,
        "freeze.paths freezes some layers of {!r} longer than others",
    )
    if 0 not in of_arrays.values():
        raise UserError(
            "freeze.paths freezes every parameter of the model, so that nothing is "
            "trained; expected fewer."
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
    """The value of each array, which must be that of all its layers."""
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
    """A transformation that has a state of its own for each time of beginning.

    A state begins to count when gradients of its parameters are first given.

    Args:
      make: from a tree of logical names, masked, to what transforms such gradients.
      axes: the tree of logical names.
      freezing: of the same parameters.
    """
    # Named by their order, so that a run may be told to freeze for longer.
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
