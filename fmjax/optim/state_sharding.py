"""Sharding of an optimizer's state: that of the parameters it belongs to."""

from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec


def state_specs(
    transformation: optax.GradientTransformation,
    abstract_params: Any,
    param_specs: Any,
) -> Any:
    """Partition specs for the state of a gradient transformation.

    A leaf of the state belongs to the parameter whose path is a suffix of its own path.
    It has that parameter's spec if both have the same shape; an axis that a factored
    statistic has reduced to size 1 is not partitioned. All other leaves (counts,
    coefficients) are replicated.

    Args:
      transformation: from `Optimizer.build`.
      abstract_params: nested dict of unboxed arrays or `jax.ShapeDtypeStruct`s.
      param_specs: a `PartitionSpec` for each of them.

    Returns:
      A tree of `PartitionSpec` like `jax.eval_shape(transformation.init, ...)`.
    """
    params, structure = jax.tree_util.tree_flatten_with_path(abstract_params)
    specs = structure.flatten_up_to(param_specs)
    owners = {path: (param.shape, spec) for (path, param), spec in zip(params, specs)}

    def spec_of(path, leaf):
        # The longest suffix first: there may be both `head/kernel` and `kernel`.
        for start in range(len(path)):
            if owner := owners.get(path[start:]):
                return _spec_beside(leaf.shape, *owner)
        return PartitionSpec()

    state = jax.eval_shape(transformation.init, abstract_params)
    return jax.tree_util.tree_map_with_path(spec_of, state)


def _spec_beside(
    shape: tuple[int, ...], param_shape: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    if shape == param_shape:
        return spec
    if len(shape) != len(param_shape):
        return PartitionSpec()
    entries = tuple(spec) + (None,) * (len(shape) - len(spec))
    sizes = zip(shape, param_shape, entries)
    return PartitionSpec(*(e if size == full else None for size, full, e in sizes))
