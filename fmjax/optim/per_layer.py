"""Gradient transformations that act on one weight of a layer or expert at a time."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from fmjax.optim.axes import Names, map_by_axes, num_batch_axes


def per_layer(
    transformation: optax.GradientTransformation,
    axes: Any,
    only: Callable[[Names], bool] = lambda names: True,
) -> optax.GradientTransformation:
    """Applies a stateless transformation to each weight of each layer by itself.

    A leaf whose first axes are `layers` and `expert` is as many weights as there are
    layers and experts, so that a norm or a mean over the weight is the same in scanned
    and in unrolled models, and of one expert.

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
        function = one_weight
        for _ in range(num_batch_axes(names)):
            function = jax.vmap(function)
        return function(update, param)

    def update_fn(updates, state, params=None):
        return map_by_axes(one_leaf, axes, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
