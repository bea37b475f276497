"""Gradient transformations applied to each layer's and expert's weight separately."""

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
    """Applies a stateless transformation to each weight of each layer separately.

    The leading axes `layers` and `expert` of a leaf are batch axes, so that a norm or
    mean over a weight is the same in scanned and unrolled models, and is taken per
    expert.

    Args:
      transformation: has no state and depends only on the update and the weight.
      axes: the tree of logical names.
      only: logical names → whether to transform the leaf; others pass unchanged.
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
