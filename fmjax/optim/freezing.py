"""Parameters that do not change until a step, or never do.

The steps of a run fall into phases: in each, the same parameters are trained. A phase
is named by the step at which it begins.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import traverse_util

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.parameter_paths import Pattern, slots
from fmjax.optim.axes import Names, map_by_axes
from fmjax.optim.parametrization import partition

NEVER = math.inf


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
    """

    paths: tuple[str, ...]
    until: int | None = None

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "paths", len(self.paths) > 0, "one pattern or more")
        fits = self.until is None or self.until >= 1
        require(self, "until", fits, "1 or more, or None for ever")


@dataclasses.dataclass(frozen=True)
class Freezing:
    """Which parameters of a model are trained when.

    Attributes:
      first_steps: a tree like the parameters: the step whose update is the first to
        change each; 0 for those that are not frozen, or `NEVER`.
    """

    first_steps: Any

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

    def describe(self, shapes: Any) -> list[str]:
        """A line for each step until which something is frozen."""
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)]
        firsts = jax.tree.leaves(self.first_steps)
        lines = []
        for begin in self.begins:
            if begin > 0:
                count = sum(n for n, first in zip(sizes, firsts) if first == begin)
                until = "for ever" if begin == NEVER else f"until step {begin}"
                lines.append(f"{count:,} of them are frozen {until}")
        return lines


def plan_freezing(rules: Sequence[Freeze], shapes: Any) -> Freezing:
    """Finds what rules freeze; where several name a parameter, the longest holds.

    Args:
      rules: what to freeze.
      shapes: the nested dict of parameters, or of their shapes.

    Raises:
      UserError: a pattern matches nothing, or a part of an array; or nothing is left to
        train.
    """
    leaves = traverse_util.flatten_dict(shapes, sep="/")
    where = slots({path: leaf.shape for path, leaf in leaves.items()})
    first: dict[str, float] = dict.fromkeys(where, 0)
    for rule in rules:
        until = NEVER if rule.until is None else rule.until
        for text in rule.paths:
            for path in Pattern(text, "freeze.paths").find(where, "the model"):
                first[path] = max(first[path], until)
    of_arrays: dict[str, float] = {}
    for path, slot in where.items():
        if of_arrays.setdefault(slot.array, first[path]) != first[path]:
            raise UserError(
                f"freeze.paths freezes some layers of {slot.array!r} longer than "
                "others, but layers that are scanned are one array. Expected all of "
                "them, or transformer.scan_layers = False."
            )
    if 0 not in of_arrays.values():
        raise UserError(
            "freeze.paths freezes every parameter of the model, so that nothing is "
            "trained; expected fewer."
        )
    return Freezing(traverse_util.unflatten_dict(of_arrays, sep="/"))


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
