"""The table of a family's weights: where each parameter lies in its files."""

import math
import re
from typing import NamedTuple

import einops
import numpy as np


class Row(NamedTuple):
    """A parameter, or several that a file joins, and the tensor that holds them.

    Attributes:
      path: of the parameter, as "stack/layers/attention/query"; under "layers" lies
        one a layer. Several paths, separated by spaces, are joined along a new first
        axis.
      name: of the tensor; {layer} stands for a layer's index, {expert} for that of an
        expert, the first axis of a layer's parameter.
      pattern: from the parameter's axes to the tensor's, as einops spells it; empty
        where they are the same.
      given: a path that the model must have for this row to count; after "!", one that
        it must not have.
    """

    path: str
    name: str
    pattern: str = ""
    given: str = ""

    @property
    def paths(self) -> list[str]:
        """The parameters that the tensor holds."""
        return self.path.split()

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, of the (joined) parameter's."""
        if not self.pattern:
            return shape
        sizes = self._sizes(shape)
        there = self.pattern.split("->")[1]
        groups = (a or b for a, b in re.findall(r"\(([^)]*)\)|(\w+)", there))
        return tuple(math.prod(sizes.get(n, 1) for n in g.split()) for g in groups)

    def to_there(self, parts: list[np.ndarray]) -> np.ndarray:
        """The tensor that holds these parameters."""
        array = np.stack(parts) if len(parts) > 1 else parts[0]
        return einops.rearrange(array, self.pattern) if self.pattern else array

    def to_here(self, tensor: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
        """The parameters that a tensor holds; `shape` as for `shape_there`."""
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
    """A `Dense` layer."""
    return (
        Row(f"{path}/kernel", f"{name}.weight", LINEAR),
        Row(f"{path}/bias", f"{name}.bias"),
    )


def norm(path: str, name: str) -> tuple[Row, ...]:
    """A norm, with an offset or without."""
    return Row(f"{path}/scale", f"{name}.weight"), Row(f"{path}/bias", f"{name}.bias")


def attention(path: str, name: str, parts: str, out: str) -> tuple[Row, ...]:
    """Projections from and to heads, each a linear layer in the file.

    Args:
      path: of the attention layer.
      name: of what the names of the projections to heads begin with.
      parts: what queries, keys and values are called, separated by spaces.
      out: the name of the projection back.
    """
    rows = []
    for ours, theirs in zip(("query", "key", "value"), parts.split(), strict=True):
        rows += [
            Row(f"{path}/{ours}", f"{name}.{theirs}.weight", _TO_HEADS),
            Row(f"{path}/{ours}_bias", f"{name}.{theirs}.bias", _OF_HEADS),
        ]
    return (*rows, *attention_out(path, out))


def attention_out(path: str, name: str) -> tuple[Row, ...]:
    """The projection back of an attention layer, a linear layer in the file."""
    return (
        Row(f"{path}/out", f"{name}.weight", _FROM_HEADS),
        Row(f"{path}/out_bias", f"{name}.bias"),
    )


def feed_forward(path: str, name: str, **parts: str) -> tuple[Row, ...]:
    """Linear layers of a feed-forward layer: what `in_`, `out`, `gate` are called."""
    rows = []
    for ours, theirs in parts.items():
        ours = ours.rstrip("_")
        rows += [
            Row(f"{path}/{ours}", f"{name}.{theirs}.weight", LINEAR),
            Row(f"{path}/{ours}_bias", f"{name}.{theirs}.bias"),
        ]
    return tuple(rows)
