"""Rows of a family's table of weights: a parameter and its tensor in a file."""

import math
import re
from typing import NamedTuple

import einops
import numpy as np

# Of the parameters of a row, each in one layer and for one expert.
Shapes = tuple[tuple[int, ...], ...]


class Row(NamedTuple):
    """One parameter, or several that a file joins, and their tensor.

    Attributes:
      path: path of the parameter, such as "stack/layers/attention/query"; below
        "layers" there is one for each layer. Several paths, separated by spaces, are
        stacked along a new first axis.
      name: name of the tensor; {layer} stands for the layer's index and {expert} for
        the expert's, the first axis of a layer's parameter.
      pattern: einops pattern from the parameter's axes to the tensor's; empty if they
        are the same.
      given: path that the model must have for this row to apply; after "!", one that it
        must not have.
      first: the first layer that has the tensor.
      after: path of a parameter of the layers that come before this one's in the file;
        empty if there are none.
    """

    path: str
    name: str
    pattern: str = ""
    given: str = ""
    first: int = 0
    after: str = ""

    @property
    def paths(self) -> list[str]:
        """Paths of the parameters of the tensor."""
        return self.path.split()

    def shape_there(self, shapes: Shapes) -> tuple[int, ...]:
        """Shape of the tensor for the shapes of the parameters."""
        shape = self._stacked(shapes)
        if not self.pattern:
            return shape
        sizes = self._sizes(shape)
        there = self.pattern.split("->")[1]
        groups = (a or b for a, b in re.findall(r"\(([^)]*)\)|(\w+)", there))
        return tuple(math.prod(sizes.get(n, 1) for n in g.split()) for g in groups)

    def to_there(self, parts: list[np.ndarray]) -> np.ndarray:
        """The tensor of parameters."""
        array = np.stack(parts) if len(parts) > 1 else parts[0]
        return einops.rearrange(array, self.pattern) if self.pattern else array

    def to_here(self, tensor: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
        """The parameters of a tensor; `shapes` as in `shape_there`."""
        if self.pattern:
            here, there = self.pattern.split("->")
            sizes = self._sizes(self._stacked(shapes))
            tensor = einops.rearrange(tensor, f"{there} -> {here}", **sizes)
        return list(tensor) if len(self.paths) > 1 else [tensor]

    def _stacked(self, shapes: Shapes) -> tuple[int, ...]:
        return shapes[0] if len(shapes) == 1 else (len(shapes), *shapes[0])

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        return dict(zip(self.pattern.split("->")[0].split(), shape, strict=True))


class Joined(NamedTuple):
    """Parameters of different shapes that a file concatenates to one tensor.

    Attributes:
      path: paths of the parameters, separated by spaces, in the order of the file.
      name: as of `Row`.
      patterns: for each path an einops pattern from the parameter's axes to axes that
        all have in common, but for the length of one: "d (g r) k -> g r k d". Lengths
        inside parentheses follow from the other parameters.
      axis: the axis that they are concatenated along.
      kept: how many of the last axes the tensor has for itself; those before are one.
      given: as of `Row`.
      first: as of `Row`.
      after: as of `Row`.
    """

    path: str
    name: str
    patterns: tuple[str, ...]
    axis: int = 0
    kept: int = 1
    given: str = ""
    first: int = 0
    after: str = ""

    @property
    def paths(self) -> list[str]:
        """Paths of the parameters of the tensor."""
        return self.path.split()

    def shape_there(self, shapes: Shapes) -> tuple[int, ...]:
        """Shape of the tensor for the shapes of the parameters."""
        whole = self._whole(shapes)
        at = len(whole) - self.kept
        return (math.prod(whole[:at]), *whole[at:])

    def to_there(self, parts: list[np.ndarray]) -> np.ndarray:
        """The tensor of parameters."""
        shapes = tuple(part.shape for part in parts)
        sizes = self._sizes(shapes)
        moved = [
            einops.rearrange(part, pattern, **_used(sizes, pattern))
            for part, pattern in zip(parts, self.patterns, strict=True)
        ]
        whole = np.concatenate(moved, axis=self.axis)
        return whole.reshape(self.shape_there(shapes))

    def to_here(self, tensor: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
        """The parameters of a tensor; `shapes` as in `shape_there`."""
        sizes = self._sizes(shapes)
        lengths = [shape[self.axis] for shape in self._moved(shapes)]
        tensor = tensor.reshape(self._whole(shapes))
        pieces = np.split(tensor, np.cumsum(lengths)[:-1], axis=self.axis)
        found = []
        for piece, pattern in zip(pieces, self.patterns, strict=True):
            here, there = pattern.split("->")
            back = f"{there} -> {here}"
            found.append(einops.rearrange(piece, back, **_used(sizes, back)))
        return found

    def _whole(self, shapes: Shapes) -> tuple[int, ...]:
        moved = self._moved(shapes)
        length = sum(shape[self.axis] for shape in moved)
        return (*moved[0][: self.axis], length, *moved[0][self.axis + 1 :])

    def _moved(self, shapes: Shapes) -> list[tuple[int, ...]]:
        """The shapes of all parts before they are concatenated."""
        sizes = {"1": 1} | self._sizes(shapes)
        return [
            tuple(sizes[name] for name in pattern.split("->")[1].split())
            for pattern in self.patterns
        ]

    def _sizes(self, shapes: Shapes) -> dict[str, int]:
        sizes: dict[str, int] = {}
        grouped = []
        for pattern, shape in zip(self.patterns, shapes, strict=True):
            axes = re.findall(r"\([^)]*\)|\w+", pattern.split("->")[0])
            for axis, length in zip(axes, shape, strict=True):
                if axis.startswith("("):
                    grouped.append((axis.strip("()").split(), length))
                else:
                    sizes[axis] = length
        for names, length in grouped:
            (unknown,) = (name for name in names if name not in sizes)
            known = math.prod(sizes[name] for name in names if name != unknown)
            sizes[unknown] = length // known
        return sizes


def _used(sizes: dict[str, int], pattern: str) -> dict[str, int]:
    """The sizes of the names that are in a pattern."""
    return {name: n for name, n in sizes.items() if name in re.findall(r"\w+", pattern)}


# PyTorch's linear layers are [outputs, inputs].
LINEAR = "i o -> o i"
_TO_HEADS, _OF_HEADS = "d h k -> (h k) d", "h k -> (h k)"
_FROM_HEADS = "h k d -> d (h k)"


def linear(path: str, name: str) -> tuple[Row, ...]:
    """Rows of a `Dense` layer."""
    return (
        Row(f"{path}/kernel", f"{name}.weight", LINEAR),
        Row(f"{path}/bias", f"{name}.bias"),
    )


def norm(path: str, name: str) -> tuple[Row, ...]:
    """Rows of a norm, with or without bias."""
    return Row(f"{path}/scale", f"{name}.weight"), Row(f"{path}/bias", f"{name}.bias")


def attention(path: str, name: str, parts: str, out: str) -> tuple[Row, ...]:
    """Rows of the projections of an attention layer, each a linear layer in the file.

    Args:
      path: path of the attention layer.
      name: prefix of the names of the query, key and value projections.
      parts: names of the query, key and value projections, separated by spaces.
      out: name of the output projection.
    """
    rows = []
    for ours, theirs in zip(("query", "key", "value"), parts.split(), strict=True):
        rows += [
            Row(f"{path}/{ours}", f"{name}.{theirs}.weight", _TO_HEADS),
            Row(f"{path}/{ours}_bias", f"{name}.{theirs}.bias", _OF_HEADS),
        ]
    return (*rows, *attention_out(path, out))


def attention_out(path: str, name: str) -> tuple[Row, ...]:
    """Rows of an attention layer's output projection, a linear layer in the file."""
    return (
        Row(f"{path}/out", f"{name}.weight", _FROM_HEADS),
        Row(f"{path}/out_bias", f"{name}.bias"),
    )


def feed_forward(path: str, name: str, **parts: str) -> tuple[Row, ...]:
    """Rows of the linear layers `in_`, `out` and `gate` of a feed-forward layer."""
    rows = []
    for ours, theirs in parts.items():
        ours = ours.rstrip("_")
        rows += [
            Row(f"{path}/{ours}", f"{name}.{theirs}.weight", LINEAR),
            Row(f"{path}/{ours}_bias", f"{name}.{theirs}.bias"),
        ]
    return tuple(rows)


def megatron_layer(block: str, layer: str, attention_name: str) -> tuple[Row, ...]:
    """Rows of a layer with the names of Megatron-LM.

    The query, key and value of a head are adjacent.

    Args:
      block: path of the layer here.
      layer: its name in files.
      attention_name: that of its attention, below it.
    """
    qkv = [f"{block}/attention/{name}" for name in ("query", "key", "value")]
    joined = f"{layer}.{attention_name}.query_key_value"
    biases = " ".join(f"{path}_bias" for path in qkv)
    return (
        *norm(f"{block}/attention_norm", f"{layer}.input_layernorm"),
        Row(" ".join(qkv), f"{joined}.weight", "q d h k -> (h q k) d"),
        Row(biases, f"{joined}.bias", "q h k -> (h q k)"),
        *attention_out(f"{block}/attention", f"{layer}.{attention_name}.dense"),
        *norm(f"{block}/mlp_norm", f"{layer}.post_attention_layernorm"),
        *feed_forward(
            f"{block}/mlp", f"{layer}.mlp", in_="dense_h_to_4h", out="dense_4h_to_h"
        ),
    )
