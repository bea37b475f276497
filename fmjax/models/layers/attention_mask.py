"""Attention masks as structure: which keys a query sees, without a T × S array."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Which of S keys each of T queries attends to: all conditions that are given hold.

    It is passed down a stack as it is, of O(T + S) memory. Only an attention kernel
    that needs the array makes it, by `to_array`; others read the fields: Splash
    attention takes segment ids and a causal or local window, cuDNN takes lengths of
    padded rows and a sliding window.

    Attributes:
      causal: a query sees no key behind it. Static.
      window: of the keys up to its own, a causal query sees the last `window`; without
        `causal` it sees the keys less than `window` away on both sides. None sets no
        limit. Static. So |q - k| < window, as in Gemma 3; ModernBERT's sliding_window,
        half of its local_attention, is window - 1.
      window_applies: bool [], whether `window` holds in this layer, where layers of one
        scan differ; None: it does.
      query_segment_ids: int [B, T]; a query sees keys of its own segment only. None
        sets no limit.
      key_segment_ids: int [B, S], with query_segment_ids.
      padding_mask: bool [B, S], True for keys that are tokens; no query, padding
        included, sees the others. None: all are.
      query_positions: int [B or 1, T], the index of the key that each query stands at,
        by which `causal` and `window` count; with a key-value cache, whose slots are
        positions. None: query i stands at key i.
    """

    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    window_applies: Bool[Array, ""] | None = None
    query_segment_ids: Int[Array, "B T"] | None = None
    key_segment_ids: Int[Array, "B S"] | None = None
    padding_mask: Bool[Array, "B S"] | None = None
    query_positions: Int[Array, "#B T"] | None = None

    @property
    def only_distance(self) -> bool:
        """Whether it says no more than `causal` and `window`, which are static."""
        return not jax.tree.leaves(self)

    def of_keys(self, first: int | Int[Array, ""], size: int) -> "AttentionMask":
        """The mask with the conditions on keys first … first + size - 1 alone.

        Its `to_array` wants `first_key=first`. Whoever cuts keys past the last one
        hides them.
        """

        def cut(x):
            x = None if x is None else jnp.pad(x, ((0, 0), (0, size)))
            return (
                None if x is None else jax.lax.dynamic_slice_in_dim(x, first, size, 1)
            )

        return dataclasses.replace(
            self,
            key_segment_ids=cut(self.key_segment_ids),
            padding_mask=cut(self.padding_mask),
        )

    def to_array(
        self, queries: int, keys: int, first_key: int | Int[Array, ""] = 0
    ) -> Bool[Array, "B T S"] | None:
        """The mask as an array, True where a query sees a key.

        Args:
          queries: T.
          keys: S.
          first_key: index of the first of them.

        Returns:
          The axis B is 1 where no condition depends on the example; None where every
          query sees every key.
        """
        conditions = []
        if self.causal or self.window is not None:
            conditions += self._by_distance(queries, first_key + jnp.arange(keys))
        if self.query_segment_ids is not None:
            conditions.append(
                self.query_segment_ids[:, :, None] == self.key_segment_ids[:, None, :]
            )
        if self.padding_mask is not None:
            conditions.append(self.padding_mask[:, None, :])
        if not conditions:
            return None
        mask = conditions[0]
        for condition in conditions[1:]:
            mask = mask & condition
        return mask

    def _by_distance(
        self, queries: int, keys: Int[Array, " S"]
    ) -> list[Bool[Array, "B T S"]]:
        at = self.query_positions
        if at is None:
            at = jnp.arange(queries)[None]
        # Of a key behind the query it is negative.
        distance = at[:, :, None] - keys
        conditions = [distance >= 0] if self.causal else []
        if self.window is not None:
            near = (distance if self.causal else jnp.abs(distance)) < self.window
            if self.window_applies is not None:
                near |= ~self.window_applies
            conditions.append(near)
        return conditions


def self_attention(
    causal: bool,
    segment_ids: Int[Array, "B T"] | None = None,
    padding_mask: Bool[Array, "B T"] | None = None,
) -> AttentionMask:
    """The mask of a sequence that attends to itself."""
    return AttentionMask(
        causal=causal,
        query_segment_ids=segment_ids,
        key_segment_ids=segment_ids,
        padding_mask=padding_mask,
    )


def cached_self_attention(positions: Int[Array, "#B T"]) -> AttentionMask:
    """The causal mask of tokens at these positions of a key-value cache."""
    return AttentionMask(causal=True, query_positions=positions)


def cross_attention(
    segment_ids: Int[Array, "B T"] | None,
    encoder_segment_ids: Int[Array, "B S"] | None,
    encoder_padding_mask: Bool[Array, "B S"] | None,
) -> AttentionMask:
    """The mask of a decoder that attends to an encoder's output.

    Segment i of a packed row attends to segment i of the encoder's. Where only the
    encoder's side is packed, all of it is read but its padding, of segment id 0.
    """
    if segment_ids is None:
        return AttentionMask(
            padding_mask=padding_mask_of(encoder_segment_ids, encoder_padding_mask)
        )
    if encoder_segment_ids is None:
        segment_ids = None
    return AttentionMask(
        query_segment_ids=segment_ids,
        key_segment_ids=encoder_segment_ids,
        padding_mask=encoder_padding_mask,
    )


def padding_mask_of(
    segment_ids: Int[Array, "B T"] | None, padding_mask: Bool[Array, "B T"] | None
) -> Bool[Array, "B T"] | None:
    """True for tokens, False for padding, which in packed rows has segment id 0.

    None where neither argument is given.
    """
    if segment_ids is None:
        return padding_mask
    in_segment = segment_ids > 0
    return in_segment if padding_mask is None else in_segment & padding_mask
