"""Logical axes of parameters: which leaves are matrices, vectors, or stacks of them.

A tree of axes has the structure of the parameters, with a tuple of names at each leaf:
`("layers", "embed", "heads", "kv")` for the stacked query kernels of a scanned model.
Shapes are not enough: stacked norm scales look like a matrix, and the bias of a query
projection, `("heads", "kv")`, is a vector that is reshaped to heads.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

Names = tuple[str | None, ...]

BATCH = frozenset({"layers", "expert"})
HIDDEN = frozenset({"embed", "mlp", "heads", "kv_heads", "kv"})


def map_by_axes(function: Callable, axes: Any, *trees: Any) -> Any:
    """Maps `function(names, *leaves)` over trees of the same structure as `axes`.

    `optax.MaskedNode`s in `axes` are kept in the result.
    """
    return jax.tree.map(function, axes, *trees, is_leaf=is_names)


def is_names(x: Any) -> bool:
    """Whether `x` is a leaf of a tree of axes: a tuple of names."""
    return isinstance(x, tuple) and not isinstance(x, optax.MaskedNode)


def num_batch_axes(names: Names) -> int:
    """The number of leading batch axes: those over layers and over experts.

    Each entry along them is a separate weight. `(layers, expert, embed, mlp)` has two.
    A router's `(embed, expert)` has none: it is one matrix with an output per expert.
    """
    count = 0
    while count < len(names) and names[count] in BATCH:
        count += 1
    return count


def sides(names: Names) -> tuple[tuple[int, ...], ...]:
    """The indices of the axes of one weight, grouped into its sides.

    Heads and head width are together one side: `(embed, heads, kv)` has the sides
    `(0,)` and `(1, 2)`, and so is a matrix; `(heads, kv)` has one side, a vector. Axes
    over layers and experts belong to no side.
    """
    groups: list[tuple[int, ...]] = []
    for i in range(num_batch_axes(names), len(names)):
        if groups and names[i] == "kv" and names[i - 1] in ("heads", "kv_heads"):
            groups[-1] += (i,)
        else:
            groups.append((i,))
    return tuple(groups)


def is_matrix(names: Names) -> bool:
    """Whether a weight has two or more sides; biases and norm scales do not.

    Kernels and tables (vocabulary, positions) are matrices; weight decay applies to
    them, as in nanoGPT.
    """
    return len(sides(names)) >= 2 and "norm" not in names


def is_hidden_matrix(names: Names) -> bool:
    """Whether the weight maps hidden features to hidden features; Muon applies to it.

    Token and position tables, the head, and weights with a side of another kind
    (patches, buckets of relative positions) do not.
    """
    inner = names[num_batch_axes(names) :]
    return len(sides(names)) == 2 and all(name in HIDDEN for name in inner)


def muon_dimensions(names: Names) -> MuonDimensionNumbers:
    """Input and output axes of a hidden matrix; the other axes are batch axes."""
    reduction, output = sides(names)
    return MuonDimensionNumbers(reduction_axis=reduction, output_axis=output)


def decay_mask(axes: Any) -> Any:
    """A tree of booleans: True for leaves with weight decay, which are the matrices."""
    return map_by_axes(is_matrix, axes)
