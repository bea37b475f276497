"""Attention masks in structured form, without a T × S array."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Which of S keys each of T queries attends to: the keys that meet all conditions.

    It takes O(T + S) memory and is passed down a stack unchanged. Only attention
    kernels that need the array make it, by `to_array`; others read the fields: splash
    attention takes segment ids and a causal or local window, cuDNN lengths of padded
    rows and a sliding window.

    Attributes:
      causal: whether a query attends only to keys up to its own position. Static.
      window: sliding window: a query attends to keys with |q - k| < window, as in
        Gemma 3; with `causal`, to the last `window` keys up to its own. None sets no
        limit. Static. ModernBERT's sliding_window, half of its local_attention, is
        window - 1.
      window_applies: bool [], whether `window` applies in this layer, where layers of
        one scan differ; None: it does.
      query_segment_ids: int [B, T]; a query attends only to keys of its own segment.
        None sets no limit.
      key_segment_ids: int [B, S], given with query_segment_ids.
      padding_mask: bool [B, S], True for tokens; no query, padding included, attends to
        keys that are padding. None: all keys are tokens.
      query_positions: int [B or 1, T], the index of the key at each query's position,
        for `causal` and `window`; given with a key-value cache, whose slots are
        positions. None: query i is at key i.
      zigzag: whether queries, keys and the arrays of the mask are in zig-zag order, see
        `fmjax.models.layers.zigzag`; i and "up to" refer to the natural order. Static.
      shared: the first keys, of virtual tokens, which belong to all segments. Static.
      before: how many of them are before the key of query 0, and in every window; see
        `behind`. Static.
    """

    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    window_applies: Bool[Array, ""] | None = None
    query_segment_ids: Int[Array, "B T"] | None = None
    key_segment_ids: Int[Array, "B S"] | None = None
    padding_mask: Bool[Array, "B S"] | None = None
    query_positions: Int[Array, "#B T"] | None = None
    zigzag: bool = dataclasses.field(default=False, metadata={"static": True})
    shared: int = dataclasses.field(default=0, metadata={"static": True})
    before: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def only_distance(self) -> bool:
        """Whether only the static conditions `causal` and `window` are set."""
        return not jax.tree.leaves(self)

    def behind(self, count: int) -> "AttentionMask":
        """The mask with more keys before all others, which every query attends to."""

        def pad(x, value):
            width = ((0, 0), (count, 0))
            return None if x is None else jnp.pad(x, width, constant_values=value)

        at = self.query_positions
        return dataclasses.replace(
            self,
            key_segment_ids=pad(self.key_segment_ids, 0),
            padding_mask=pad(self.padding_mask, True),
            query_positions=None if at is None else at + count,
            shared=self.shared + count,
            before=self.before + count,
        )

    def of_keys(self, first: int | Int[Array, ""], size: int) -> "AttentionMask":
        """The mask restricted to the keys first … first + size - 1.

        Call its `to_array` with `first_key=first`. Keys past the last one are not
        masked; the caller must mask them.
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
        """The mask as an array, True where a query attends to a key.

        Args:
          queries: T.
          keys: S.
          first_key: index of the first key.

        Returns:
          The mask, with B = 1 if no condition depends on the example; None if every
          query attends to every key.
        """
        conditions, index = [], first_key + jnp.arange(keys)
        if self.causal or self.window is not None:
            conditions += self._by_distance(queries, index)
        if self.query_segment_ids is not None:
            own = self.query_segment_ids[:, :, None] == self.key_segment_ids[:, None, :]
            conditions.append(own | (index < self.shared) if self.shared else own)
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
            at = self.before + jnp.arange(queries)[None]
        # Negative for keys after the query.
        distance = at[:, :, None] - keys
        conditions = [distance >= 0] if self.causal else []
        if self.window is not None:
            near = (distance if self.causal else jnp.abs(distance)) < self.window
            if self.window_applies is not None:
                near |= ~self.window_applies
            if self.before:
                near |= keys < self.before
            conditions.append(near)
        return conditions


def self_attention(
    causal: bool,
    segment_ids: Int[Array, "B T"] | None = None,
    padding_mask: Bool[Array, "B T"] | None = None,
    shared: int = 0,
) -> AttentionMask:
    """The mask of a sequence that attends to itself.

    Args:
      causal: as of `AttentionMask`, likewise the next two.
      segment_ids: of queries and keys.
      padding_mask: True for tokens.
      shared: first keys that all segments attend to.
    """
    return AttentionMask(
        causal=causal,
        query_segment_ids=segment_ids,
        key_segment_ids=segment_ids,
        padding_mask=padding_mask,
        shared=0 if segment_ids is None else shared,
    )


def cached_self_attention(positions: Int[Array, "#B T"]) -> AttentionMask:
    """The causal mask of tokens at these positions of a key-value cache."""
    return AttentionMask(causal=True, query_positions=positions)


def cross_attention(
    segment_ids: Int[Array, "B T"] | None,
    encoder_segment_ids: Int[Array, "B S"] | None,
    encoder_padding_mask: Bool[Array, "B S"] | None,
    shared: int = 0,
) -> AttentionMask:
    """The mask of a decoder that attends to an encoder's output.

    Segment i of a packed row attends to segment i of the encoder's row. If only the
    encoder's row has segment ids, all of it is attended to except padding, of id 0. The
    first `shared` keys are those of all segments.
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
        shared=0 if segment_ids is None else shared,
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
