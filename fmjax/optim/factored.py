"""Adafactor's factored second moments, factored by logical axes.

`optax.scale_by_factored_rms` factors the two largest axes. In stacked kernels one of
them may be `layers`, and `(embed, heads, kv)` is not factored at all if heads are
narrower than `min_dim_size_to_factor`. Here `heads` and `kv` together are one side, and
`layers` and `expert` are batch axes, as in T5X's `standard_logical_factor_rules`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fmjax.optim.axes import Names, is_matrix, is_names, map_by_axes, sides


class FactoredState(NamedTuple):
    """Running means of squared gradients; reduced axes are kept with size 1.

    A leaf has either `v_row` and `v_col`, or `v`; the others are `optax.MaskedNode`.
    """

    count: Int[Array, ""]
    v_row: Any
    v_col: Any
    v: Any


def scale_by_factored_rms(
    axes: Any,
    decay_rate: float = 0.8,
    min_dim_size_to_factor: int = 128,
    eps: float = 1e-30,
) -> optax.GradientTransformation:
    """Divides a gradient G by the root of its factored second moment.

    The update is G / √(R C / mean(R)), where R and C are running means of G² + eps over
    the output and the input side, with decay β = 1 - t^-decay_rate at update
    t = 1, 2, … (Shazeer and Stern 2018, arXiv:1804.04235, algorithm 4). Vectors, and
    matrices with a side shorter than `min_dim_size_to_factor`, keep the full second
    moment.

    Args:
      axes: the tree of logical names.
      decay_rate: exponent of β.
      min_dim_size_to_factor: the shortest side that is factored.
      eps: added to squared gradients.
    """
    absent = optax.MaskedNode()

    def factored_sides(names: Names, shape):
        if not is_matrix(names) or len(sides(names)) != 2:
            return None
        shortest = min(math.prod(shape[i] for i in side) for side in sides(names))
        return sides(names) if shortest >= min_dim_size_to_factor else None

    def init_leaf(names, param):
        split = factored_sides(names, param.shape)
        if split is None:
            return absent, absent, jnp.zeros_like(param)
        rows, columns = split
        v_row = jnp.zeros_like(param).mean(columns, keepdims=True)
        v_col = jnp.zeros_like(param).mean(rows, keepdims=True)
        return v_row, v_col, absent

    def update_leaf(names, gradient, v_row, v_col, v, beta):
        split = factored_sides(names, gradient.shape)
        square = jnp.square(gradient) + eps
        if split is None:
            v = beta * v + (1 - beta) * square
            return gradient * jax.lax.rsqrt(v), absent, absent, v
        rows, columns = split
        v_row = beta * v_row + (1 - beta) * square.mean(columns, keepdims=True)
        v_col = beta * v_col + (1 - beta) * square.mean(rows, keepdims=True)
        row = jax.lax.rsqrt(v_row / v_row.mean(rows, keepdims=True))
        return gradient * row * jax.lax.rsqrt(v_col), v_row, v_col, absent

    def init_fn(params):
        trees = _unzip(map_by_axes(init_leaf, axes, params), axes)
        return FactoredState(jnp.zeros([], jnp.int32), *trees)

    def update_fn(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        beta = 1 - count.astype(jnp.float32) ** -decay_rate
        results = map_by_axes(
            lambda *leaf: update_leaf(*leaf, beta),
            axes,
            updates,
            state.v_row,
            state.v_col,
            state.v,
        )
        updates, *trees = _unzip(results, axes)
        return updates, FactoredState(count, *trees)

    return optax.GradientTransformation(init_fn, update_fn)


def _unzip(results: Any, axes: Any) -> list[Any]:
    """A tree of tuples as a list of trees."""
    length = len(jax.tree.leaves(results, is_leaf=is_names)[0])
    return [map_by_axes(lambda _, r, i=i: r[i], axes, results) for i in range(length)]
