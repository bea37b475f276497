"""Slots: the state of a batch of texts during generation."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.models.layers.attention import KeyValueCache

# The self-attention cache: one, or one for each half of a captioner's decoder.
SelfCache = KeyValueCache | tuple[KeyValueCache, KeyValueCache]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The state of R texts between two tokens; a pytree of device arrays.

    Slots are independent: each has its own length and position, and `insert` puts a new
    text into one while the others continue.

    Attributes:
      hidden: [R, 1, D], hidden vectors from which the next tokens are predicted.
      positions: int32 [R], positions of the next tokens.
      cache: keys and values of self-attention, [layers, R, N, G, K] each.
      cross_cache: keys and values of cross-attention, [layers, B, S, G, K] each; R is
        B, or a multiple if beams share it. None without cross-attention.
      cross_lengths: int32 [B], lengths of the encoder's inputs; None if all are S.
    """

    hidden: Float[Array, "R 1 D"]
    positions: Int[Array, " R"]
    cache: SelfCache
    cross_cache: KeyValueCache | None = None
    cross_lengths: Int[Array, " B"] | None = None


def empty_slots(like: Slots, count: int) -> Slots:
    """`count` slots without texts, with the shapes of a prefilled batch."""

    def zeros(x, axis):
        return jnp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)

    return _map(zeros, like)


def insert(slots: Slots, prefilled: Slots, where: Int[Array, " B"]) -> Slots:
    """Puts prefilled texts into slots; other slots are unchanged.

    Args:
      slots: R slots.
      prefilled: B texts of the same decoder; their caches must not be longer.
      where: int32 [B], below R, the slot of each text; its old text is replaced.

    Raises:
      ValueError: the caches of the slots are too short.
    """

    def put(new, axis, old):
        if any(n > m for n, m in zip(new.shape[axis + 1 :], old.shape[axis + 1 :])):
            raise ValueError(
                f"prefilled arrays of {new.shape} do not fit slots of {old.shape}"
            )
        # Values after a shorter cache are masked by positions or by cross_lengths.
        inside = tuple(slice(n) for n in new.shape[axis + 1 :])
        return old.at[(*[slice(None)] * axis, where, *inside)].set(new)

    return _map(put, prefilled, slots)


def _map(function, slots: Slots, *others: Slots) -> Slots:
    """Maps function(array, axis of its rows, *arrays of the others)."""
    axes = Slots(
        hidden=0,
        positions=0,
        cache=jax.tree.map(lambda _: 1, slots.cache),
        cross_cache=jax.tree.map(lambda _: 1, slots.cross_cache),
        cross_lengths=jax.tree.map(lambda _: 0, slots.cross_lengths),
    )
    return jax.tree.map(function, slots, axes, *others)
