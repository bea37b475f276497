"""Products of thin matrices, between a file's tensor and the parameters that it joins.

A tensor W [outputs, inputs] (or [inputs, outputs], as those of GPT-2) of which an
adapter has A [r, inputs] and B [outputs, r] may hold several parameters along its
outputs. Each parameter w [..inputs, ..outputs] has a [..inputs, r] and b [r, ..outputs]
of its own here. All arrays are of one layer, and of one expert.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fmjax.interop.rows import Joined, Row, Shapes


class LowRank(NamedTuple):
    """A product of thin matrices: scale · a b.

    Attributes:
      a: [..inputs, r] of a parameter, [r, inputs] of a tensor.
      b: [r, ..outputs] of a parameter, [outputs, r] of a tensor.
      scale: of the product.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """The number of columns of a parameter's a."""
        return self.b.shape[0]


class Layout(NamedTuple):
    """How the parameters of one tensor lie in it.

    Attributes:
      row: of the family's table.
      shapes: of the parameters.
      inputs: the number of axes of inputs of a parameter, which come first.
    """

    row: Row | Joined
    shapes: Shapes
    inputs: int

    @property
    def is_linear(self) -> bool:
        """Whether the tensor is a matrix from inputs to outputs."""
        there = self.row.shape_there(self.shapes)
        if not self.inputs or len(there) != 2 or len(self.shapes[0]) <= self.inputs:
            return False
        changed = self.row.shape_there(self._with_inputs(self.num_inputs + 1))
        return sum(n != m for n, m in zip(there, changed)) == 1

    @property
    def num_inputs(self) -> int:
        """The number of inputs."""
        return math.prod(self.shapes[0][: self.inputs])

    @property
    def num_outputs(self) -> int:
        """The number of outputs of all parameters."""
        return math.prod(self.row.shape_there(self.shapes)) // self.num_inputs

    @property
    def inputs_first(self) -> bool:
        """Whether the tensor is [inputs, outputs]."""
        there = self.row.shape_there(self.shapes)
        return there[0] != self.row.shape_there(self._with_inputs(1 + there[0]))[0]

    def split(self, whole: LowRank) -> list[LowRank]:
        """The products of the parameters, given the tensor's."""
        parts = self.split_outputs(whole.b)
        a = self.split_inputs(whole.a.T)
        return [LowRank(a, part, whole.scale) for part in parts]

    def join(self, parts: Sequence[LowRank | None]) -> LowRank:
        """The product of the tensor, given those of its parameters; some may have none.

        Parameters with the same a share it. Otherwise the rank is the sum of theirs,
        and b is block-diagonal.
        """
        given = [part for part in parts if part is not None]
        scale = given[0].scale
        firsts = [part.a for part in given]
        if all(np.array_equal(a, firsts[0]) for a in firsts):
            groups = [(firsts[0], parts)]
        else:
            groups = [
                (own.a, [part if part is own else None for part in parts])
                for own in given
            ]
        a, b = [], []
        for first, group in groups:
            rank = first.shape[-1]
            whole = [
                np.zeros((rank, *shape[self.inputs :]), np.float32)
                if part is None
                else part.b * np.float32(part.scale / scale)
                for part, shape in zip(group, self.shapes)
            ]
            b.append(self.join_outputs(whole))
            a.append(self.join_inputs(first))
        return LowRank(np.concatenate(a, 1).T, np.concatenate(b, 1), scale)

    def split_outputs(self, whole: np.ndarray) -> list[np.ndarray]:
        """[outputs, r] of a tensor → [r, ..outputs] of each parameter."""
        rank = whole.shape[1]
        there = whole.T if self.inputs_first else whole
        parts = self.row.to_here(there, self._with_inputs(rank))
        return [
            part.reshape(rank, *shape[self.inputs :])
            for part, shape in zip(parts, self.shapes)
        ]

    def join_outputs(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """[r, ..outputs] of each parameter → [outputs, r] of a tensor."""
        shapes = self._with_inputs(len(parts[0]))
        there = self.row.to_there([p.reshape(s) for p, s in zip(parts, shapes)])
        return there.T if self.inputs_first else there

    def split_inputs(self, whole: np.ndarray) -> np.ndarray:
        """[inputs, r] of a tensor → [..inputs, r] of every parameter."""
        inputs, rank = self.shapes[0][: self.inputs], whole.shape[1]
        if self.inputs == 1:
            return whole
        there = whole if self.inputs_first else whole.T
        (part,) = self.row.to_here(there, self._with_outputs(rank))
        return part.reshape(*inputs, rank)

    def join_inputs(self, part: np.ndarray) -> np.ndarray:
        """[..inputs, r] of a parameter → [inputs, r] of its tensor."""
        if self.inputs == 1:
            return part
        (shape,) = self._with_outputs(part.shape[-1])
        there = self.row.to_there([part.reshape(shape)])
        return there if self.inputs_first else there.T

    def _with_inputs(self, count: int) -> Shapes:
        """The shapes with as many inputs, all along the first axis."""
        ones = (1,) * (self.inputs - 1)
        return tuple((count, *ones, *shape[self.inputs :]) for shape in self.shapes)

    def _with_outputs(self, count: int) -> Shapes:
        """The shapes with as many outputs, all along the first of their axes."""
        found = []
        for shape in self.shapes:
            ones = (1,) * (len(shape) - self.inputs - 1)
            found.append((*shape[: self.inputs], count, *ones))
        return tuple(found)


def without_zeros(part: LowRank) -> LowRank | None:
    """A product without its last columns that are all zero; None if it is all zero."""
    columns = part.a.reshape(-1, part.rank).any(0) | part.b.reshape(part.rank, -1).any(
        1
    )
    if not columns.any():
        return None
    rank = int(np.flatnonzero(columns)[-1]) + 1
    return LowRank(part.a[..., :rank], part.b[:rank], part.scale)
