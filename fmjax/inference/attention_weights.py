"""Attention weights that layers have stored, one array for each stack."""

import re

import numpy as np
from flax import traverse_util
from jaxtyping import Float

from fmjax.models.parameter_paths import DENSE

_LAYER = re.compile(r"layer_(\d+)")


def by_stack(collection: dict) -> dict[str, Float[np.ndarray, "layers B H T S"]]:
    """The arrays of a collection by the path of their stack and kind of attention.

    Layers before experts (experts.dense_layers) come first in the array of their stack.

    Args:
      collection: of flax; arrays [layers, B, H, T, S] of scanned layers, or [B, H, T,
        S] of `layer_0`, `layer_1`, ….
    """
    found: dict[str, dict[tuple[bool, int], np.ndarray]] = {}
    for path, array in traverse_util.flatten_dict(collection).items():
        *stack, layers, kind, _ = path
        first = stack[-1:] == [DENSE]
        name = "/".join((*(stack[:-1] if first else stack), kind))
        layer = _LAYER.fullmatch(layers)
        at, array = (0, array) if layer is None else (int(layer[1]), array[None])
        found.setdefault(name, {})[not first, at] = array
    return {
        name: _joined([parts[at] for at in sorted(parts)])
        for name, parts in found.items()
    }


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    # A copy only where there is something to join: the arrays are large.
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
