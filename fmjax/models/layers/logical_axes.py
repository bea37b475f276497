"""Logical axes: initializers of parameters and sharding constraints of activations.

Weights are made with `self.param` and these initializers, and applied with einsum. They
replace linen's DenseGeneral, whose initializer fails for several feature axes under a
mesh.
"""

import contextlib
import math
from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array, Float


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains the sharding of an activation; does nothing without a mesh.

    Args:
      x: the activation.
      *names: logical name of each axis; None for an axis that is not sharded.
    """
    return nn.with_logical_constraint(x, names)


def constrain_residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Shards the residual stream between layers: its rows, and T over "act_length".

    Under tensor parallelism each device then normalizes and keeps a part of every row
    (sequence parallelism, Korthikanti et al. 2022). A T that its devices do not divide
    stays whole.
    """
    return constrain(x, "batch", residual_length_axis(x.shape[1]), "act_embed")


def residual_length_axis(length: int) -> str:
    """The logical axis of T = `length` positions in the residual stream."""
    return "length" if length % shards("act_length") else "act_length"


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes of more than one device that shard a logical axis."""
    # Looked up one at a time: in one lookup no two names may share a mesh axis.
    axes = (nn.logical_to_mesh_axes((name,)) or (None,))[0]
    axes = (axes,) if isinstance(axes, str) else axes or ()
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in axes if sizes.get(axis, 1) > 1)


def shards(name: str) -> int:
    """The number of devices that a logical axis is sharded over."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in mesh_axes(name))


def rules_without(axes: tuple[str, ...]) -> contextlib.AbstractContextManager:
    """Context manager: the logical rules without these mesh axes."""

    def rest(target):
        names = (target,) if isinstance(target, str) else target or ()
        return tuple(name for name in names if name not in axes) or None

    rules = nn.get_logical_axis_rules()
    return nn.logical_axis_rules([(name, rest(target)) for name, target in rules])


def normal_init(stddev: float, *names: str | None) -> Callable:
    """A normal initializer, with mean 0, of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), names)


def zeros_init(*names: str | None) -> Callable:
    """A zero initializer of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.zeros, names)


def constant_init(value: float, *names: str | None) -> Callable:
    """A constant initializer of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), names)
