"""Merging adapters into the weights that they lie beside."""

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
    adapters: dict[str, dict[str, Array]] = {}
    for path in [*flat]:
        owner, _, name = path.rpartition("/")
        for suffix, method in _APART.items():
            if owner.endswith(suffix):
                raise UserError(
                    f"{owner!r}, of @{method}(), cannot be merged: no weight of the "
                    "model does what it adds. Expected adapters of @lora() or @ia3() "
                    "alone; keep this run as it is."
                )
        if owner.endswith((LORA, IA3)):
            adapters.setdefault(owner, {})[name] = flat.pop(path)
    # LoRA first: IA3 multiplies what LoRA has changed.
    for owner in sorted(adapters, key=lambda owner: owner.endswith(IA3)):
        adapter = adapters[owner]
        if owner.endswith(LORA):
            path = owner.removesuffix(LORA)
            flat[path] = merged(flat[path], adapter).astype(flat[path].dtype)
            continue
        path = owner.removesuffix(IA3)
        flat |= _multiplied(flat, path, adapter, names[path])
    return traverse_util.unflatten_dict(flat, sep="/")


def _multiplied(
    flat: dict[str, Array], path: str, adapter: Adapter, names: Names
) -> dict[str, Array]:
    """The weight and bias with IA3's factors in them, by path."""
    weight = flat[path]
    whole = weight.astype(jnp.float32)
    found = {}
    if "in" in adapter:
        factors = adapter["in"]
        whole = whole * factors.reshape(
            *factors.shape, *(1,) * (whole.ndim - factors.ndim)
        )
    if "out" in adapter:
        factors, batch = adapter["out"], num_batch_axes(names)
        ones = (1,) * (whole.ndim - factors.ndim)
        whole = whole * factors.reshape(
            *factors.shape[:batch], *ones, *factors.shape[batch:]
        )
        folder, _, name = path.rpartition("/")
        bias = f"{folder}/{'bias' if name == 'kernel' else f'{name}_bias'}"
        if bias in flat:
            found[bias] = (flat[bias] * factors).astype(flat[bias].dtype)
    return found | {path: whole.astype(weight.dtype)}
