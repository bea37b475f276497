"""Weights of a model that adapters are added to, and the parameters that are added."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Key

from fmjax.errors import UserError
from fmjax.models.layers.adapters import Adapter
from fmjax.models.parameter_paths import SCANNED, SHARED, Pattern, slots
from fmjax.optim.axes import Names, num_batch_axes, sides

# Levels of paths that are blocks of a stack.
_BLOCKS = (SCANNED, SHARED)
_LAYER = re.compile(r"layer_\d+")


@dataclasses.dataclass(frozen=True)
class Weight:
    """A matrix of the model, or a stack of them over layers or experts.

    Attributes:
      path: of its array in the parameters, such as 'stack/layers/attention/query'.
      names: logical names of its axes.
      shape: of the array.
    """

    path: str
    names: Names
    shape: tuple[int, ...]

    @property
    def batch(self) -> int:
        """Number of leading axes that run over layers and experts."""
        return num_batch_axes(self.names)

    @property
    def is_table(self) -> bool:
        """Whether rows of it are looked up."""
        return self.path.rpartition("/")[2] == "table"

    def side(self, which: int) -> tuple[tuple[int, ...], Names]:
        """Sizes and names of the axes of its inputs (0) or of its outputs (1)."""
        axes = sides(self.names)
        of_side = axes[0] if which == 0 else tuple(i for s in axes[1:] for i in s)
        return (
            tuple(self.shape[i] for i in of_side),
            tuple(self.names[i] for i in of_side),
        )

    @property
    def stacked(self) -> tuple[tuple[int, ...], Names]:
        """Sizes and names of the axes over layers and experts."""
        return self.shape[: self.batch], self.names[: self.batch]


@dataclasses.dataclass(frozen=True)
class Added:
    """A parameter that a method adds to the model's.

    Attributes:
      shape: of the array, those of layers and experts first.
      names: logical names of its axes.
      init: random key → initial value, float32.
      rate: factor of its learning rate.
      trained: whether it is trained.
      fit: (weight, arrays of the same adapter) → initial value that depends on the
        weight, for a weight without axes of layers and experts; None where it does not.
    """

    shape: tuple[int, ...]
    names: Names
    init: Callable[[Key[Array, ""]], Array]
    rate: float = 1.0
    trained: bool = True
    fit: Callable[[Array, Adapter], Array] | None = None


class Method(Protocol):
    """Protocol of `peft.methods`."""

    def added(self, weights: Sequence[Weight]) -> dict[str, Added]:
        """The parameters that it adds, by path.

        Args:
          weights: the matrices of the model.

        Raises:
          UserError: a pattern matches none of them, or a matrix does not fit.
        """


def matrices(
    axes: Mapping[str, Names], shapes: Mapping[str, tuple[int, ...]]
) -> list[Weight]:
    """The weights with inputs and outputs, without norms, by path of the parameters."""
    return [
        Weight(path, axes[path], shape)
        for path, shape in shapes.items()
        if len(sides(axes[path])) >= 2 and "norm" not in axes[path]
    ]


def sublayers(weights: Sequence[Weight]) -> list[Weight]:
    """Attention and feed-forward layers of blocks, each by the width of its output.

    Args:
      weights: the matrices of the model.

    Returns:
      A vector for each, or a stack of them, at the path of the layer's parameters, such
      as 'stack/layers/attention'.
    """
    found = []
    for weight in weights:
        path, _, name = weight.path.rpartition("/")
        *above, _ = path.split("/")
        of_block = any(level in _BLOCKS or _LAYER.fullmatch(level) for level in above)
        if name == "out" and of_block and above[-1] != "mlp":
            stacked = weight.names[0] == "layers"
            shape = (*weight.shape[:stacked], weight.shape[-1])
            names = (*weight.names[:stacked], weight.names[-1])
            found.append(Weight(path, names, shape))
    return found


def chosen(
    patterns: Iterable[str],
    binding: str,
    weights: Sequence[Weight],
    kind: str = "the model that is a matrix",
) -> list[Weight]:
    """The weights that patterns match.

    Args:
      patterns: see `fmjax.models.parameter_paths`.
      binding: that they are from, for messages.
      weights: the matrices of the model, or what may be chosen in place of them.
      kind: of which they are, for messages.

    Raises:
      UserError: a pattern matches none, or not all layers of an array.
    """
    by_path = {weight.path: weight for weight in weights}
    where = slots({weight.path: weight.shape for weight in weights})
    found: dict[str, set[str]] = {}
    for text in patterns:
        matched = Pattern(text, binding).find(where, kind)
        for path in matched:
            found.setdefault(where[path].array, set()).add(path)
    every: dict[str, set[str]] = {}
    for path, slot in where.items():
        every.setdefault(slot.array, set()).add(path)
    for array, paths in found.items():
        if paths != every[array]:
            raise UserError(
                f"{binding} matches {len(paths)} of {len(every[array])} layers of "
                f"{array!r}, but layers that are scanned are one array. Expected all "
                "of them, or transformer.scan_layers = False."
            )
    return [by_path[array] for array in found]


def normal(std: float, shape: tuple[int, ...]) -> Callable[[Key[Array, ""]], Array]:
    """An initializer of normal numbers with mean 0; zeros for a deviation of 0."""
    return lambda key: std * jax.random.normal(key, shape)


def constant(value: float, shape: tuple[int, ...]) -> Callable[[Any], Array]:
    """An initializer that needs no random key."""
    return lambda _: jax.numpy.full(shape, value, np.float32)
