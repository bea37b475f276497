"""Adafactor's factored second moments, factored along the sides that names tell.

`optax.scale_by_factored_rms` factors the two largest axes: of stacked kernels, `layers`
may be one of them, and of `(embed, heads, kv)` it factors nothing where the head is
narrower than `min_dim_size_to_factor`. Here `heads` and `kv` are one side, `layers` and
`expert` are a batch, as in T5X's `standard_logical_factor_rules`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fmjax.optim.axes import Names, is_matrix, is_names, map_by_axes, sides


class FactoredState(NamedTuple):
    """Means of squared gradients; the axes that a mean ran over are kept, with size 1.

    A leaf has either `v_row` and `v_col` or `v`; `optax.MaskedNode` marks the absent.
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

    With β = 1 - t^-decay_rate at update t = 1, 2, …, R and C the running means of
    G² + eps over the output and the input side: G / √(R C / mean(R)) (Shazeer and Stern
    2018, arXiv:1804.04235, algorithm 4). Vectors, and matrices with a side shorter than
    `min_dim_size_to_factor`, keep the whole second moment.

    Args:
      axes: the tree of logical names.
      decay_rate: how fast β goes to 1.
      min_dim_size_to_factor: the shortest side that is worth factoring.
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
