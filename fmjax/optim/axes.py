"""What kind of parameter a leaf is, told by the logical names of its axes.

A tree of axes is like the tree of parameters, with a tuple of names at each leaf:
`("layers", "embed", "heads", "kv")` for the stacked query kernels of a scanned model.
A shape could not tell: stacked norm scales look like a matrix, and the bias of a
query projection, `("heads", "kv")`, is a vector that was cut into heads.
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
    """Maps `function(names, *leaves)` over trees that are like the tree of axes.

    Where axes have `optax.MaskedNode`, so has the result.
    """
    return jax.tree.map(function, axes, *trees, is_leaf=is_names)


def is_names(x: Any) -> bool:
    """Whether it is a leaf of a tree of axes."""
    return isinstance(x, tuple) and not isinstance(x, optax.MaskedNode)


def num_batch_axes(names: Names) -> int:
    """How many of the first axes run over weights, each a parameter of its own.

    They are those over layers and over experts: `(layers, expert, embed, mlp)` has two.
    A router's `(embed, expert)` has none: it is one matrix, whose output is experts.
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
    """Whether a layer's weight has two sides or more: neither bias nor norm.

    Kernels and tables (vocabulary, positions) are; these are decayed, as in nanoGPT.
    """
    return len(sides(names)) >= 2 and "norm" not in names


def is_hidden_matrix(names: Names) -> bool:
    """Whether the weight maps hidden features to hidden features, as Muon asks for.

    Token and position tables, the head, and sides whose name says nothing of hidden
    features (patches, buckets of relative positions) do not.
    """
    inner = names[num_batch_axes(names) :]
    return len(sides(names)) == 2 and all(name in HIDDEN for name in inner)


def muon_dimensions(names: Names) -> MuonDimensionNumbers:
    """Input and output axes of a hidden matrix; those that remain are a batch."""
    reduction, output = sides(names)
    return MuonDimensionNumbers(reduction_axis=reduction, output_axis=output)


def decay_mask(axes: Any) -> Any:
    """A tree of booleans: which leaves weight decay acts on (the matrices)."""
    return map_by_axes(is_matrix, axes)
