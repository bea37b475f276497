"""Slots: a batch of texts that are being generated, each at its own position."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.models.layers.attention import KeyValueCache

# What a decoder writes each token into: a cache, or one for each of its halves.
SelfCache = KeyValueCache | tuple[KeyValueCache, KeyValueCache]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The state of R texts between two tokens; a pytree of device arrays.

    Slots do not depend on each other: each has a length and a position of its own, and
    `insert` gives one a new text while the others go on.

    Attributes:
      hidden: [R, 1, D], from which each next token is predicted.
      positions: int32 [R], at which each next token is read.
      cache: keys and values of the decoder's own tokens, [layers, R, N, G, K] each.
      cross_cache: those of what an encoder or an image gave, [layers, B, S, G, K]; R is
        B, or for beams, which share it, a multiple. None without cross-attention.
      cross_lengths: int32 [B], of what the encoder read; None where S are.
    """

    hidden: Float[Array, "R 1 D"]
    positions: Int[Array, " R"]
    cache: SelfCache
    cross_cache: KeyValueCache | None = None
    cross_lengths: Int[Array, " B"] | None = None


def empty_slots(like: Slots, count: int) -> Slots:
    """`count` slots as wide and long as those of a prefilled batch, without texts."""

    def zeros(x, axis):
        return jnp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)

    return _map(zeros, like)


def insert(slots: Slots, prefilled: Slots, where: Int[Array, " B"]) -> Slots:
    """Puts prefilled texts into slots; the other slots stay as they are.

    Args:
      slots: R of them.
      prefilled: B texts, of the same decoder, with caches that are no longer.
      where: int32 [B], below R: the slot of each; whatever it held is gone.

    Raises:
      ValueError: the slots' caches are too short.
    """

    def put(new, axis, old):
        if any(n > m for n, m in zip(new.shape[axis + 1 :], old.shape[axis + 1 :])):
            raise ValueError(
                f"prefilled arrays of {new.shape} do not fit slots of {old.shape}"
            )
        # What is behind a shorter cache is hidden by positions, or by cross_lengths.
        inside = tuple(slice(n) for n in new.shape[axis + 1 :])
        return old.at[(*[slice(None)] * axis, where, *inside)].set(new)

    return _map(put, prefilled, slots)


def _map(function, slots: Slots, *others: Slots) -> Slots:
    """A function of every array, the axis of its rows, and those of others."""
    axes = Slots(
        hidden=0,
        positions=0,
        cache=jax.tree.map(lambda _: 1, slots.cache),
        cross_cache=jax.tree.map(lambda _: 1, slots.cross_cache),
        cross_lengths=jax.tree.map(lambda _: 0, slots.cross_lengths),
    )
    return jax.tree.map(function, slots, axes, *others)
