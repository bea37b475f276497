"""What a model is applied to, composed of what is trained and of what is not.

A tree of parameters is divided by booleans: `partition` takes the leaves of one part,
with `optax.MaskedNode` in place of the others, and `combine` puts parts together again.
Everything that holds a part of the parameters goes through these two functions:

- freezing: a step differentiates, updates and projects the trained part, and applies
  the model to it combined with the frozen part, each frozen leaf in a dtype of its own;
- moving averages: kept of the part that is ever trained, and evaluated combined with
  the rest;
- parameters of other runs: `fmjax.training.init_from` replaces leaves of any
  collection before the first step, and `start_average` takes them over.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def partition(tree: Any, chosen: Any) -> Any:
    """The chosen leaves of a tree, `optax.MaskedNode` for the others.

    Args:
      tree: like the parameters.
      chosen: a boolean for each of its leaves.
    """
    return jax.tree.map(
        lambda taken, leaf: leaf if taken else optax.MaskedNode(), chosen, tree
    )


def combine(part: Any, params: Any) -> Any:
    """`params`, with the leaves of `part` in place of those that it has.

    Args:
      part: from `partition`.
      params: every parameter.
    """
    return jax.tree.map(
        lambda new, old: old if _is_masked(new) else new,
        part,
        params,
        is_leaf=_is_masked,
    )


def cast(params: Any, dtypes: Any) -> Any:
    """The parameters, each in its dtype, rounded to the nearest value.

    Args:
      params: arrays.
      dtypes: the name of a dtype for each.
    """
    return jax.tree.map(lambda name, leaf: leaf.astype(name), dtypes, params)


def average(ema: Any, trained: Any, decay: float) -> Any:
    """The moving average after an update: decay · ema + (1 - decay) · trained.

    Args:
      ema: the part of the parameters that is ever trained.
      trained: the part of it that was updated; the average of the rest stays as it is.
      decay: of the average.
    """
    updated = jax.tree.map(
        lambda new, old: new if _is_masked(new) else old,
        trained,
        ema,
        is_leaf=_is_masked,
    )
    return combine(optax.incremental_update(trained, updated, 1 - decay), ema)


def start_average(ema: Any, params: Any) -> Any:
    """The average before the first update: copies of the parameters that it is of.

    Args:
      ema: the part of the parameters that is ever trained.
      params: every parameter.
    """
    return jax.tree.map(
        lambda old, new: old if _is_masked(old) else jnp.copy(new),
        ema,
        params,
        is_leaf=_is_masked,
    )


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
