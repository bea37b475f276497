"""What the programs of `triton_kernels` take: blocks of scores, and their arrays."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

# Score of hidden keys, and the logarithm of the sum over no keys; finite, so that
# differences of two of them are numbers.
HIDDEN = -1e30
NO_WINDOW = 2**30
_PADDING = 2**30  # larger than any segment's id


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks of scores, powers of two, and how Triton compiles them.

    Attributes:
      q: queries of a block.
      k: keys of a block.
      warps: of 32 threads that compute a block together.
      stages: blocks that are loaded ahead of their computation, and one.
    """

    q: int
    k: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """How scores are made, and which of them exist, as far as is known statically.

    Attributes:
      scale: of the products of queries and keys.
      softcap: see `AttentionCall`.
      causal: whether a query sees only keys up to its own place.
      window: a query sees only keys at a smaller distance; None sets no limit.
      keys: S before padding.
      keys_are_padded: whether there are keys past these, which nothing sees.
      interpret: whether Pallas interprets the programs, on any platform.
    """

    scale: float
    softcap: float | None
    causal: bool
    window: int | None
    keys: int
    keys_are_padded: bool
    interpret: bool

    def name(self, program: str) -> str:
        """The program's name with what the mask leaves out."""
        causal = "_causal" if self.causal else ""
        return program + causal + (f"_window_{self.window}" if self.window else "")


@dataclasses.dataclass(frozen=True)
class Visible:
    """The arrays that say which keys a query sees; None where they set no limit.

    Attributes:
      query_ids: int32 [B, T]; a query sees only keys of its own id.
      key_ids: int32 [B, S].
      window: int32 [1], instead of `Scores.window` where layers differ.
    """

    query_ids: Int[Array, "B T"] | None = None
    key_ids: Int[Array, "B S"] | None = None
    window: Int[Array, " 1"] | None = None

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        """The arrays in order."""
        return self.query_ids, self.key_ids, self.window


jax.tree_util.register_dataclass(Visible)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distances:
    """The arrays of a bias by distance, see `DistanceBias`; None where there is none.

    Distances beyond `farthest` have the bias of that one, with the same sign.

    Attributes:
      queries: int32 [B or 1, T], positions.
      keys: int32 [B or 1, S], positions.
      slopes: float32 [H], of ALiBi.
      values: float32 [H, 2 · farthest + 1], the bias of each distance from -farthest.
      buckets: int32 [2 · farthest + 1], the bucket of each, for the gradient.
    """

    queries: Int[Array, "_ T"] | None = None
    keys: Int[Array, "_ S"] | None = None
    slopes: Float[Array, " H"] | None = None
    values: Float[Array, "H distances"] | None = None
    buckets: Int[Array, " distances"] | None = None

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        """The arrays in order."""
        return self.queries, self.keys, self.slopes, self.values, self.buckets


NO_DISTANCES = Distances()


Range = tuple[Int[Array, "_ _"], Int[Array, "_ _"]]


def block_ranges(
    how: Scores, blocks: Blocks, visible: Visible, T: int, S: int
) -> tuple[Range, Range]:
    """Which blocks have to be visited: [first, last) for each block of the other side.

    All blocks outside are hidden; some inside may be, if ids are not in order.

    Args:
      how: of the scores.
      blocks: their sizes.
      visible: of the mask.
      T: number of queries.
      S: number of keys.

    Returns:
      Of keys for each block of queries, int32 [1 or B, T / blocks.q], and of queries
      for each block of keys, [1 or B, S / blocks.k].
    """
    rows, columns = (
        jnp.arange(n // size) * size for n, size in ((T, blocks.q), (S, blocks.k))
    )
    # Distances from the last query of a block to its first key, and the other way.
    back = rows[:, None] + blocks.q - 1 - columns
    ahead = columns + blocks.k - 1 - rows[:, None]
    seen = jnp.broadcast_to(columns < how.keys, back.shape)
    if how.causal:
        seen &= back >= 0
    for window in (how.window, visible.window):
        if window is not None:
            # Of the nearest key, where all lie before or behind all of the queries.
            distance = jnp.maximum(-ahead, -back)
            seen &= distance < window
    seen = seen[None]
    if visible.query_ids is not None:
        q_least, q_most = _least_and_most(visible.query_ids, blocks.q)
        k_least, k_most = _least_and_most(visible.key_ids, blocks.k)
        seen &= q_least[:, :, None] <= k_most[:, None]
        seen &= k_least[:, None] <= q_most[:, :, None]
    return _range(seen), _range(jnp.swapaxes(seen, 1, 2))


def _least_and_most(ids: Int[Array, "B T"], block: int) -> Range:
    """Of each block; with ids in the order of packed rows, whose padding comes last."""
    ids = jnp.where(ids <= 0, _PADDING - ids, ids).reshape(len(ids), -1, block)
    return ids.min(-1), ids.max(-1)


def _range(seen: Bool[Array, "_ _ _"]) -> Range:
    any_seen = seen.any(-1)
    first = jnp.argmax(seen, -1)
    last = seen.shape[-1] - jnp.argmax(seen[..., ::-1], -1)
    return tuple(jnp.where(any_seen, x, 0).astype(jnp.int32) for x in (first, last))


@dataclasses.dataclass(frozen=True)
class Specs:
    """Which part of each array a program sees, by its place (block, head, row)."""

    blocks: Blocks
    heads_of_key: int
    of_queries: bool  # whether blocks and heads of the grid are the queries'

    def range(self, x: Array) -> pl.BlockSpec:
        """One number of `block_ranges` for a block."""
        shared = len(x) == 1
        return pl.BlockSpec((None, None), lambda i, h, b: (0 if shared else b, i))

    def query_block(self, width: int) -> pl.BlockSpec:
        """A block of queries, of one head."""
        shape = (None, self.blocks.q, None, width)
        return pl.BlockSpec(shape, lambda i, h, b: (b, i, h, 0))

    def key_block(self, width: int) -> pl.BlockSpec:
        """A block of keys, of one head."""
        shape = (None, self.blocks.k, None, width)
        return pl.BlockSpec(shape, lambda i, g, b: (b, i, g, 0))

    def sums_block(self) -> pl.BlockSpec:
        """A number for each query of a block."""
        return pl.BlockSpec((None, None, self.blocks.q), lambda i, h, b: (b, h, i))

    def all_keys(self, x: Array) -> pl.BlockSpec:
        """All keys of the head that serves a query head."""
        shape = (None, x.shape[1], None, x.shape[3])
        return pl.BlockSpec(shape, lambda i, h, b: (b, 0, h // self.heads_of_key, 0))

    def all_queries(self, x: Array) -> pl.BlockSpec:
        """All queries of the heads that a key head serves."""
        shape = (None, x.shape[1], self.heads_of_key, x.shape[3])
        return pl.BlockSpec(shape, lambda i, g, b: (b, 0, g, 0))

    def all_sums(self, T: int) -> pl.BlockSpec:
        """A number for each of these queries."""
        shape = (None, self.heads_of_key, T)
        return pl.BlockSpec(shape, lambda i, g, b: (b, g, 0))

    def visible(self, visible: Visible) -> list[pl.BlockSpec | None]:
        """The arrays of a mask."""

        def ids(x, size, whole):
            if x is None:
                return None
            if whole:
                return pl.BlockSpec((None, x.shape[1]), lambda i, h, b: (b, 0))
            return pl.BlockSpec((None, size), lambda i, h, b: (b, i))

        window = None
        if visible.window is not None:
            window = pl.BlockSpec((None,), lambda i, h, b: (0,))
        return [
            ids(visible.query_ids, self.blocks.q, not self.of_queries),
            ids(visible.key_ids, self.blocks.k, self.of_queries),
            window,
        ]

    def distances(self, distances: Distances) -> list[pl.BlockSpec | None]:
        """The arrays of a bias by distance."""

        def positions(x, size, whole):
            if x is None:
                return None
            one = len(x) == 1
            if whole:
                shape = (None, x.shape[1])
                return pl.BlockSpec(shape, lambda i, h, b: (0 if one else b, 0))
            return pl.BlockSpec((None, size), lambda i, h, b: (0 if one else b, i))

        heads = None if self.of_queries else self.heads_of_key
        slopes = values = buckets = None
        if distances.slopes is not None:
            slopes = pl.BlockSpec((heads,), lambda i, h, b: (h,))
        if distances.values is not None:
            shape = (heads, distances.values.shape[1])
            values = pl.BlockSpec(shape, lambda i, h, b: (h, 0))
            buckets = pl.BlockSpec(distances.buckets.shape, lambda i, h, b: (0,))
        return [
            positions(distances.queries, self.blocks.q, not self.of_queries),
            positions(distances.keys, self.blocks.k, self.of_queries),
            slopes,
            values,
            buckets,
        ]

    def buckets_block(self, count: int) -> pl.BlockSpec:
        """A number for each bucket, of a block of queries."""
        return pl.BlockSpec((None, None, None, count), lambda i, h, b: (b, h, i, 0))
