"""Merging adapters into the weights that they lie beside."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from fmjax.errors import UserError
from fmjax.models.layers.adapters import IA3, LORA, Adapter, merged
from fmjax.models.layers.bottleneck import HOULSBY, PFEIFFER
from fmjax.models.layers.virtual_tokens import PREFIX, PROMPT
from fmjax.optim.axes import Names, num_batch_axes

# Suffix of what no weight of the model can hold → gin name of its method.
_APART = {
    PREFIX: "prefix",
    PROMPT: "prompt",
    HOULSBY: "bottleneck",
    PFEIFFER: "bottleneck",
}


def merge(params: Any, axes: Any) -> Any:
    """Parameters without adapters, with which a model computes the same.

    Weights are merged in float32 and have their dtype again afterwards.

    Args:
      params: nested dict of parameters and adapters.
      axes: nested dict of logical names of the parameters, with or without adapters.

    Raises:
      UserError: an adapter is no change of a weight.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    names = traverse_util.flatten_dict(axes, sep="/")
    check_mergeable(flat)
    whole = {
        path: merged_array(path, flat, names).astype(array.dtype)
        for path, array in flat.items()
        if not _is_added(path)
    }
    return traverse_util.unflatten_dict(whole, sep="/")


def check_mergeable(paths: Iterable[str]) -> None:
    """Raises a UserError if one of parameters is an adapter that changes no weight.

    Args:
      paths: of the parameters.
    """
    for path in paths:
        owner = path.rpartition("/")[0]
        for suffix, method in _APART.items():
            if owner.endswith(suffix):
                raise UserError(
                    f"{owner!r}, of @{method}(), cannot be merged: no weight of the "
                    "model does what it adds. Expected adapters of @lora() or @ia3() "
                    "alone; keep this run as it is."
                )


def sources(path: str, added: Iterable[str]) -> list[str]:
    """The paths of the arrays of which a merged parameter is made.

    Args:
      path: of the parameter.
      added: paths of the parameters that are added.
    """
    weight = _weight_of(path)
    own = [
        name for name in added if name.rpartition("/")[0] in (path + LORA, path + IA3)
    ]
    factors = [name for name in added if name == f"{weight}{IA3}/out"]
    return [path, *own, *(factors if weight != path else ())]


def merged_array(
    path: str, arrays: Mapping[str, Array], axes: Mapping[str, Names]
) -> Array:
    """A merged parameter, float32 where it is changed.

    Args:
      path: of the parameter.
      arrays: by path, those of `sources` or more.
      axes: logical names of the parameters, by path.
    """
    value = arrays[path]
    if lora := _adapter(path + LORA, arrays):
        value = merged(value, lora)
    # LoRA first: IA3 multiplies what LoRA has changed.
    if ia3 := _adapter(path + IA3, arrays):
        value = _multiplied(value.astype(jnp.float32), ia3, num_batch_axes(axes[path]))
    weight = _weight_of(path)
    if weight != path and (factors := arrays.get(f"{weight}{IA3}/out")) is not None:
        value = value.astype(jnp.float32) * factors
    return value


def _is_added(path: str) -> bool:
    return path.rpartition("/")[0].endswith((LORA, IA3))


def _adapter(owner: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    names = (name for name in arrays if name.rpartition("/")[0] == owner)
    return {name.rpartition("/")[2]: arrays[name] for name in names}


def _weight_of(path: str) -> str:
    """The path of a bias's weight; of other parameters their own."""
    folder, _, name = path.rpartition("/")
    weight = "kernel" if name == "bias" else name.removesuffix("_bias")
    return path if name == weight else f"{folder}/{weight}"


def _multiplied(weight: Array, adapter: Adapter, batch: int) -> Array:
    """The weight with IA3's factors of its inputs and outputs in it."""
    if "in" in adapter:
        factors = adapter["in"]
        ones = (1,) * (weight.ndim - factors.ndim)
        weight = weight * factors.reshape(*factors.shape, *ones)
    if "out" in adapter:
        factors = adapter["out"]
        ones = (1,) * (weight.ndim - factors.ndim)
        weight = weight * factors.reshape(
            *factors.shape[:batch], *ones, *factors.shape[batch:]
        )
    return weight
