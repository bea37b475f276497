"""Sizes of a model's parameters beside those of a base model, by logical axes.

The last side of a parameter (`axes.sides`) is its output, the sides before it are its
input: kernels are [in, out], tables [rows, width]; a bias or norm has an output alone.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from fmjax.errors import UserError
from fmjax.models.parameter_paths import DENSE, SCANNED
from fmjax.optim.axes import Names, is_hidden_matrix, num_batch_axes, sides

WIDTHS = frozenset({"embed", "mlp", "heads", "kv_heads", "kv", "norm"})
_IN_LAYERS = re.compile(rf"(.*?/)(?:{SCANNED}|layer_(\d+))/.*")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of one parameter, and those of the same parameter of the base model.

    Attributes:
      names: logical names of its axes.
      fan_in: inputs of a weight, (the model's, the base's); (1, 1) of a vector.
      fan_out: outputs, likewise.
      layers: layers of the stack that it is in, likewise; None outside of blocks.
    """

    names: Names
    fan_in: tuple[int, int]
    fan_out: tuple[int, int]
    layers: tuple[int, int] | None

    @property
    def m_in(self) -> float:
        """Ratio of the inputs to the base's."""
        return self.fan_in[0] / self.fan_in[1]

    @property
    def m_out(self) -> float:
        """Ratio of the outputs to the base's."""
        return self.fan_out[0] / self.fan_out[1]

    @property
    def m_layers(self) -> float:
        """Ratio of the layers of its stack to the base's; 1 outside of blocks."""
        return 1.0 if self.layers is None else self.layers[0] / self.layers[1]

    @property
    def is_output(self) -> bool:
        """Whether it maps features that scale to outputs that do not."""
        return self.m_in != 1.0 and self.m_out == 1.0

    @property
    def is_head(self) -> bool:
        """Whether it is the kernel of a language head that is not tied."""
        return self.names[-1:] == ("vocab",) and len(sides(self.names)) > 1

    @property
    def is_hidden_matrix(self) -> bool:
        """As `axes.is_hidden_matrix`."""
        return is_hidden_matrix(self.names)


def compare(model: tuple[Any, Any], base: tuple[Any, Any], binding: str) -> Any:
    """The sizes of each parameter, a tree like the parameters.

    Args:
      model: trees of logical names and of shapes of the parameters.
      base: those of the base model.
      binding: what names the base, for messages.

    Raises:
      UserError: the models differ in more than widths and numbers of layers.
    """
    own, other = _by_path(*model), _by_path(*base)
    counts = _layers(own), _layers(other)
    of_base = {_any_layer(path): leaf for path, leaf in other.items()}
    for missing in sorted({*of_base} ^ {_any_layer(path) for path in own}):
        which = "the base" if missing in of_base else "the model"
        raise UserError(
            f"{binding}: {which} alone has the parameter {missing!r}; expected a base "
            "that differs in sizes only."
        )
    ratios = {1.0}
    for path, (names, shape) in own.items():
        ratios |= {
            size / was
            for name, size, was in zip(names, shape, of_base[_any_layer(path)][1])
            if name in WIDTHS
        }
    found = {}
    for path, leaf in own.items():
        key = _any_layer(path)
        _check(path, leaf, of_base[key], ratios, binding)
        found[path] = _sizes(leaf, of_base[key], *(c.get(key) for c in counts))
    return traverse_util.unflatten_dict(found, sep="/")


Leaf = tuple[Names, tuple[int, ...]]


def _by_path(axes: Any, shapes: Any) -> dict[str, Leaf]:
    # Names are tuples, which are leaves of a nested dict.
    names = traverse_util.flatten_dict(axes, sep="/")
    leaves = traverse_util.flatten_dict(shapes, sep="/")
    return {path: (names[path], leaf.shape) for path, leaf in leaves.items()}


def _any_layer(path: str) -> str:
    return re.sub(r"\blayer_\d+\b", "layer_*", path)


def _layers(leaves: Mapping[str, Leaf]) -> dict[str, int]:
    """Layers of the stack of each parameter of a block, by path without the layer.

    Layers before experts count as those of the stack that they are in.
    """
    stacks: dict[str, str] = {}
    layers: dict[str, set[tuple[str, int]]] = {}
    for path, (names, shape) in leaves.items():
        inside = _IN_LAYERS.fullmatch(path)
        if inside is None and names[:1] != (SCANNED,):
            continue
        where, index = inside.groups() if inside else (path, None)
        indices = range(shape[0]) if index is None else [int(index)]
        stack = stacks[_any_layer(path)] = where.removesuffix(f"{DENSE}/")
        layers.setdefault(stack, set()).update((where, i) for i in indices)
    return {path: len(layers[stack]) for path, stack in stacks.items()}


def _check(path: str, own: Leaf, base: Leaf, ratios: set[float], binding: str) -> None:
    """Raises a UserError for axes that differ and are no widths."""
    if own[0] != base[0]:
        raise UserError(
            f"{binding}: {path!r} has the axes {base[0]} in the base, {own[0]} in the "
            "model; expected the same."
        )
    for name, size, was in zip(*own, base[1]):
        known = name in WIDTHS or name == SCANNED
        # An axis without a name may be any: the output of a pooler scales, and that of
        # a classifier does not.
        if size == was or known or (name is None and size / was in ratios):
            continue
        raise UserError(
            f"{binding}: axis {name!r} of {path!r} has the size {was} in the base, "
            f"{size} in the model; expected the same, as it is no width."
        )


def _sizes(own: Leaf, base: Leaf, layers: int | None, base_layers: int | None) -> Sizes:
    names, shape = own

    def count(of: tuple[int, ...], part: tuple) -> int:
        return math.prod(of[i] for side in part for i in side)

    if num_batch_axes(names) == len(names):
        split: tuple = ((), ())
    else:
        split = sides(names)[:-1], sides(names)[-1:]
    inputs, outputs = ((count(shape, s), count(base[1], s)) for s in split)
    both = None if layers is None or base_layers is None else (layers, base_layers)
    return Sizes(names, inputs, outputs, both)
