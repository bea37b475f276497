"""Rows of a family's table of weights: a parameter and its tensor in a file."""

import math
import re
from typing import NamedTuple

import einops
import numpy as np


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
    """

    path: str
    name: str
    pattern: str = ""
    given: str = ""
    first: int = 0

    @property
    def paths(self) -> list[str]:
        """Paths of the parameters of the tensor."""
        return self.path.split()

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor for the shape of the (stacked) parameters."""
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

    def to_here(self, tensor: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
        """The parameters of a tensor; `shape` as in `shape_there`."""
        if self.pattern:
            here, there = self.pattern.split("->")
            sizes = self._sizes(shape)
            tensor = einops.rearrange(tensor, f"{there} -> {here}", **sizes)
        return list(tensor) if len(self.paths) > 1 else [tensor]

    def _sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        return dict(zip(self.pattern.split("->")[0].split(), shape, strict=True))


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
