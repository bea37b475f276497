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

HIDDEN = frozenset({"embed", "mlp", "heads", "kv_heads", "kv"})


def map_by_axes(function: Callable, axes: Any, *trees: Any) -> Any:
    """Maps `function(names, *leaves)` over trees that are like the tree of axes.

    Where axes have `optax.MaskedNode`, so has the result.
    """
    return jax.tree.map(function, axes, *trees, is_leaf=is_names)


def is_names(x: Any) -> bool:
    """Whether it is a leaf of a tree of axes."""
    return isinstance(x, tuple) and not isinstance(x, optax.MaskedNode)


def is_stacked(names: Names) -> bool:
    """Whether axis 0 runs over layers, each slice being a parameter of its own."""
    return names[:1] == ("layers",)


def sides(names: Names) -> tuple[tuple[int, ...], ...]:
    """The indices of the axes of one layer, grouped into the sides of a weight.

    Heads and head width are together one side: `(embed, heads, kv)` has the sides
    `(0,)` and `(1, 2)`, and so is a matrix; `(heads, kv)` has one side, a vector.
    """
    groups: list[tuple[int, ...]] = []
    for i in range(is_stacked(names), len(names)):
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
    inner = names[is_stacked(names) :]
    return len(sides(names)) == 2 and all(name in HIDDEN for name in inner)


def muon_dimensions(names: Names) -> MuonDimensionNumbers:
    """Input and output axes of a hidden matrix; `layers` is what remains, a batch."""
    reduction, output = sides(names)
    return MuonDimensionNumbers(reduction_axis=reduction, output_axis=output)


def decay_mask(axes: Any) -> Any:
    """A tree of booleans: which leaves weight decay acts on (the matrices)."""
    return map_by_axes(is_matrix, axes)
