"""Zig-zag order of sequences whose length is sharded over devices.

Of 2n chunks of a sequence, device i of n has chunks i and 2n - 1 - i. Under a causal
mask all devices then have the same number of keys to attend to; in natural order the
last has 2n - 1 times as many as the first (Dubey et al. 2024, section 3.3.2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from fmjax.models.layers.logical_axes import mesh_axes, shards


def zigzag_order(length: int) -> np.ndarray:
    """The position in natural order of each place in zig-zag order, int32 [T].

    Args:
      length: T, which twice the number of devices must divide.
    """
    n = shards("length")
    chunks = np.arange(length, dtype=np.int32).reshape(2 * n, -1)
    return chunks[[c for i in range(n) for c in (i, 2 * n - 1 - i)]].reshape(-1)


def whole_to_zigzag(
    x: Shaped[Array, "#B T ..."] | None,
) -> Shaped[Array, "#B T ..."] | None:
    """An array that every device has whole, such as segment ids, in zig-zag order."""
    return None if x is None else jnp.take(x, zigzag_order(x.shape[1]), axis=1)


def whole_from_zigzag(
    x: Shaped[Array, "#B T ..."] | None,
) -> Shaped[Array, "#B T ..."] | None:
    """The inverse of `whole_to_zigzag`."""
    if x is None:
        return None
    return jnp.take(x, np.argsort(zigzag_order(x.shape[1])), axis=1)


def to_zigzag(x: Shaped[Array, "B T ..."]) -> Shaped[Array, "B T ..."]:
    """A sharded array in zig-zag order: every device sends and receives two chunks."""
    axes, n = mesh_axes("length"), shards("length")

    def exchange(x):
        even, odd = jnp.split(x, 2, axis=1)  # chunks 2i and 2i + 1
        even = jax.lax.ppermute(even, axes, [(i, _device(2 * i, n)) for i in range(n)])
        odd = jax.lax.ppermute(
            odd, axes, [(i, _device(2 * i + 1, n)) for i in range(n)]
        )
        return _in_turn(axes, even, odd)

    return _on_chunks(exchange, axes, x)


def from_zigzag(x: Shaped[Array, "B T ..."]) -> Shaped[Array, "B T ..."]:
    """The inverse of `to_zigzag`."""
    axes, n = mesh_axes("length"), shards("length")

    def exchange(x):
        first, second = jnp.split(x, 2, axis=1)  # chunks i and 2n - 1 - i
        pair = [(i, 2 * n - 1 - i) for i in range(n)]
        even, odd = jnp.split(_in_turn(axes, first, second), 2, axis=1)
        of_even, of_odd = (
            [(i, next(c for c in pair[i] if c % 2 == rest) // 2) for i in range(n)]
            for rest in (0, 1)
        )
        even = jax.lax.ppermute(even, axes, of_even)
        odd = jax.lax.ppermute(odd, axes, of_odd)
        return jnp.concatenate([even, odd], axis=1)

    return _on_chunks(exchange, axes, x)


def _device(chunk: int, n: int) -> int:
    """The device that has a chunk in zig-zag order."""
    return min(chunk, 2 * n - 1 - chunk)


def _in_turn(axes: tuple[str, ...], a: Array, b: Array) -> Array:
    """Both arrays along T: `a` before `b` on devices of even index, else after it."""
    is_even = jax.lax.axis_index(axes) % 2 == 0
    return jnp.concatenate([jnp.where(is_even, a, b), jnp.where(is_even, b, a)], axis=1)


def _on_chunks(exchange: Callable, axes: tuple[str, ...], x: Array) -> Array:
    placed = PartitionSpec(None, axes)
    return jax.shard_map(
        exchange,
        in_specs=placed,
        out_specs=placed,
        axis_names=set(axes),
        check_vma=False,
    )(x)
