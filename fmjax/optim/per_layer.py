"""Gradient transformations that act on one weight at a time, layer by layer."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from fmjax.optim.axes import Names, is_stacked, map_by_axes


def per_layer(
    transformation: optax.GradientTransformation,
    axes: Any,
    only: Callable[[Names], bool] = lambda names: True,
) -> optax.GradientTransformation:
    """Applies a stateless transformation to each weight of each layer by itself.

    A leaf whose axis 0 is `layers` is as many weights as there are layers, so that a
    norm or a mean over the weight is the same in scanned and in unrolled models.

    Args:
      transformation: has no state and reads the update and the weight alone.
      axes: the tree of logical names.
      only: leaves whose names it refuses pass unchanged.
    """

    def one_weight(update, param):
        return transformation.update(update, optax.EmptyState(), param)[0]

    def one_leaf(names, update, param):
        if not only(names):
            return update
        function = jax.vmap(one_weight) if is_stacked(names) else one_weight
        return function(update, param)

    def update_fn(updates, state, params=None):
        return map_by_axes(one_leaf, axes, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
