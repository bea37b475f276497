"""Parameters and activations with the logical names of their axes.

Weights are made with `self.param` and these initializers, and applied with einsum,
rather than by linen's DenseGeneral, whose initializer fails on several feature axes
under a mesh.
"""

from collections.abc import Callable

import jax
from flax import linen as nn


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Places an activation by logical names; does nothing outside a mesh."""
    return nn.with_logical_constraint(x, names)


def normal_init(stddev: float, *names: str | None) -> Callable:
    """A normal initializer of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), names)


def zeros_init(*names: str | None) -> Callable:
    """Zeros with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.zeros, names)


def constant_init(value: float, *names: str | None) -> Callable:
    """One value everywhere, with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), names)
