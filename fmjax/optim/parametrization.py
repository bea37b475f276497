"""What a model is applied to, composed of what is trained and of what is not.

The steps of a run fall into phases: in each, the same parameters are trained. Trees of
what is trained in a phase have `optax.MaskedNode` where the others would be. Freezing,
moving averages and parameters taken from other runs all go through `partition` and
`combine`.
"""

from typing import Any

import jax
import optax


def partition(tree: Any, trained: Any) -> Any:
    """The leaves of a tree that are trained, `optax.MaskedNode` for the others.

    Args:
      tree: like the parameters.
      trained: a boolean for each of its leaves.
    """
    return jax.tree.map(
        lambda chosen, leaf: leaf if chosen else optax.MaskedNode(), trained, tree
    )


def combine(trained: Any, params: Any) -> Any:
    """`params` with what `trained` has in its place."""
    return jax.tree.map(
        lambda new, old: old if _is_masked(new) else new,
        trained,
        params,
        is_leaf=_is_masked,
    )


def average(ema: Any, trained: Any, decay: float) -> Any:
    """The moving average after an update: decay · ema + (1 - decay) · trained.

    Args:
      ema: like the parameters.
      trained: those that are trained; the average of the others stays as it is.
      decay: of the average.
    """
    masked = jax.tree.map(
        lambda new, old: new if _is_masked(new) else old,
        trained,
        ema,
        is_leaf=_is_masked,
    )
    return combine(optax.incremental_update(trained, masked, 1 - decay), ema)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
