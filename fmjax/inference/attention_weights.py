"""Attention weights that layers have stored, one array for each stack."""

import re

import numpy as np
from flax import traverse_util
from jaxtyping import Float

_LAYER = re.compile(r"layer_(\d+)")


def by_stack(collection: dict) -> dict[str, Float[np.ndarray, "layers B H T S"]]:
    """The arrays of a collection by the path of their stack and kind of attention.

    Args:
      collection: of flax; arrays [layers, B, H, T, S] of scanned layers, or [B, H, T,
        S] of `layer_0`, `layer_1`, ….
    """
    found: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for path, array in traverse_util.flatten_dict(collection).items():
        *parents, kind, _ = path
        name = "/".join((*parents[:-1], kind))
        layer = _LAYER.fullmatch(parents[-1])
        if layer is None:
            found[name] = array
        else:
            layers.setdefault(name, {})[int(layer[1])] = array
    for name, of_layer in layers.items():
        found[name] = np.stack([of_layer[i] for i in sorted(of_layer)])
    return found
