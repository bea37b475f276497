"""Factors by which an optimizer treats parameters differently.

`fmjax.optim.mup` decides what they are.
"""

import collections
import dataclasses
from typing import Any

import jax
import optax

from fmjax.optim.axes import is_names


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Factors of one parameter, or of a stack of parameters.

    Attributes:
      init: of its initial values.
      rate: of its learning rate.
      decay: of its weight decay; a step subtracts learning rate · rate · weight decay ·
        decay · weight.
      epsilon: of Adam's epsilon.
    """

    init: float = 1.0
    rate: float = 1.0
    decay: float = 1.0
    epsilon: float = 1.0


def scale_init(scaling: Any, params: Any) -> Any:
    """Initial parameters, each multiplied by its factor; the same bits for 1."""
    return jax.tree.map(
        lambda scale, leaf: leaf if scale.init == 1.0 else scale.init * leaf,
        scaling,
        params,
    )


def scale_rates(scaling: Any) -> optax.GradientTransformation:
    """Multiplies updates by the factors of the learning rate."""
    return _scale(jax.tree.map(lambda scale: scale.rate, scaling))


def scale_gradients(scaling: Any) -> list[optax.GradientTransformation]:
    """Divides gradients by the factors of epsilon; nothing if there are no factors.

    The direction of Adam with epsilon f · ε is that of the gradients divided by f with
    epsilon ε.
    """
    if scaling is None:
        return []
    return [_scale(jax.tree.map(lambda scale: 1 / scale.epsilon, scaling))]


def rate_groups(scaling: Any, params: Any) -> dict[float, int]:
    """Factors of the learning rate, the largest first → sizes of what has them.

    Args:
      scaling: a Scaling per parameter; None for no factors.
      params: the parameters, or their shapes.
    """
    if scaling is None:
        return {1.0: sum(leaf.size for leaf in jax.tree.leaves(params))}
    sizes: collections.Counter[float] = collections.Counter()
    for scale, leaf in zip(jax.tree.leaves(scaling), jax.tree.leaves(params)):
        sizes[scale.rate] += leaf.size
    return dict(sorted(sizes.items(), reverse=True))


def like_axes(axes: Any, scaling: Any) -> Any:
    """The factors, with `optax.MaskedNode` where a tree of logical names has it."""
    return jax.tree.map(
        lambda names, scale: scale if is_names(names) else names,
        axes,
        scaling,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _scale(factors: Any) -> optax.GradientTransformation:
    def update(updates, _):
        return jax.tree.map(
            lambda factor, leaf: leaf if factor == 1.0 else factor * leaf,
            factors,
            updates,
        )

    return optax.stateless(update)
