"""Factors by which an optimizer treats parameters differently.

`fmjax.optim.mup`, `fmjax.optim.peft` and `fmjax.optim.layer_decay` decide what they
are.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from fmjax.optim.axes import is_names


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Factors of one parameter, or of a stack of parameters.

    Attributes:
      init: of its initial values.
      rate: of its learning rate; of a stack of layers also one for each, in order.
      decay: of its weight decay; a step subtracts learning rate · rate · weight decay ·
        decay · weight.
      epsilon: of Adam's epsilon.
    """

    init: float = 1.0
    rate: float | tuple[float, ...] = 1.0
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
    return _scale(scaling, lambda scale: scale.rate)


def scale_gradients(scaling: Any) -> list[optax.GradientTransformation]:
    """Divides gradients by the factors of epsilon; nothing if there are no factors.

    The direction of Adam with epsilon f · ε is that of the gradients divided by f with
    epsilon ε.
    """
    if scaling is None:
        return []
    return [_scale(scaling, lambda scale: 1 / scale.epsilon)]


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
        rates = scale.rate if isinstance(scale.rate, tuple) else (scale.rate,)
        for rate in rates:
            sizes[rate] += leaf.size // len(rates)
    return dict(sorted(sizes.items(), reverse=True))


def like_axes(axes: Any, scaling: Any) -> Any:
    """The factors, with `optax.MaskedNode` where a tree of logical names has it."""
    return jax.tree.map(
        lambda names, scale: scale if is_names(names) else names,
        axes,
        scaling,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _scale(
    scaling: Any, factor_of: Callable[[Scaling], float | tuple[float, ...]]
) -> optax.GradientTransformation:
    def scaled(scale: Scaling, leaf: jax.Array) -> jax.Array:
        factor = factor_of(scale)
        if isinstance(factor, tuple):
            ones = (1,) * (leaf.ndim - 1)
            return np.asarray(factor, leaf.dtype).reshape(-1, *ones) * leaf
        return leaf if factor == 1.0 else factor * leaf

    return optax.stateless(lambda updates, _: jax.tree.map(scaled, scaling, updates))
