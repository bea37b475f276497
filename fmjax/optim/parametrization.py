"""Partition of parameters into trained and frozen ones, and moving averages of them.

`partition` selects leaves of a tree by booleans, with `optax.MaskedNode` in place of
the others, and `combine` merges a selection into the whole tree. They are used for:

- freezing: a step differentiates, updates and projects the trained part, and applies
  the model to it combined with the frozen part, whose leaves may have other dtypes;
- moving averages: kept for the part that is ever trained, and combined with the rest
  for evaluation;
- parameters of other runs: `fmjax.training.start_from` replaces leaves of any
  collection before the first step, and `start_average` starts the averages from them.

Adapters are leaves beside those that they change, and layers apply them where a weight
multiplies its inputs (`fmjax.models.layers.adapters`); so they are trained parameters
as any others, and what they change is frozen.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def partition(tree: Any, chosen: Any) -> Any:
    """The chosen leaves of a tree, with `optax.MaskedNode` for the others.

    Args:
      tree: a tree like the parameters.
      chosen: a tree of booleans of the same structure.
    """
    return jax.tree.map(
        lambda taken, leaf: leaf if taken else optax.MaskedNode(), chosen, tree
    )


def combine(part: Any, params: Any) -> Any:
    """`params`, with its leaves replaced by those of `part` where `part` has them.

    Args:
      part: from `partition`.
      params: all parameters.
    """
    return jax.tree.map(
        lambda new, old: old if _is_masked(new) else new,
        part,
        params,
        is_leaf=_is_masked,
    )


def cast(params: Any, dtypes: Any) -> Any:
    """The parameters cast to dtypes, rounded to the nearest value.

    Args:
      params: a tree of arrays.
      dtypes: a tree of names of dtypes, of the same structure.
    """
    return jax.tree.map(lambda name, leaf: leaf.astype(name), dtypes, params)


def average(ema: Any, trained: Any, decay: float) -> Any:
    """The moving average after an update: decay · ema + (1 - decay) · trained.

    Args:
      ema: averages of the parameters that are ever trained.
      trained: the parameters that were updated; averages of the others are unchanged.
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
    """The average before the first update: copies of the averaged parameters.

    Args:
      ema: averages of the parameters that are ever trained, whose values are replaced.
      params: all parameters.
    """
    return jax.tree.map(
        lambda old, new: old if _is_masked(old) else jnp.copy(new),
        ema,
        params,
        is_leaf=_is_masked,
    )


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
