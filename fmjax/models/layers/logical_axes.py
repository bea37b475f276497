"""Logical axes: initializers of parameters and sharding constraints of activations.

Weights are made with `self.param` and these initializers, and applied with einsum. They
replace linen's DenseGeneral, whose initializer fails for several feature axes under a
mesh.
"""

from collections.abc import Callable

import jax
from flax import linen as nn


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains the sharding of an activation; does nothing without a mesh.

    Args:
      x: the activation.
      *names: logical name of each axis; None for an axis that is not sharded.
    """
    return nn.with_logical_constraint(x, names)


def normal_init(stddev: float, *names: str | None) -> Callable:
    """A normal initializer, with mean 0, of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), names)


def zeros_init(*names: str | None) -> Callable:
    """A zero initializer of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.zeros, names)


def constant_init(value: float, *names: str | None) -> Callable:
    """A constant initializer of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), names)
