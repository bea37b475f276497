"""Experts applied to an array that has rows for them in only some of its places.

After an exchange a device has room for all rows of all devices, and rows in as many
places as it has experts' tokens: with n devices and experts chosen evenly, in one of n.
The rows are sorted by expert and computed block by block, as many blocks as there are
rows for, so that neither time nor memory follow from the room.
"""

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.models.layers.grouped_dot import expected_rows, grouped_dot

# "in", "gate" and "out" [E, inputs, outputs], and of each what adapters and biases add:
# "in_a" [E, inputs, r] and "in_b" [E, r, outputs]; "in_factor" and "in_bias" [E, 1,
# outputs].
Kernels = dict[str, Array]
FeedForward = Callable[[Array, Kernels, Callable], Array]
EXPECTED_TRIPS = "expected_trips_"
# Fewer rows take no less time: grouped products go by blocks of as many.
SMALLEST_BLOCK = 512


def expected_trips(count: int) -> contextlib.AbstractContextManager:
    """Context manager: notes in the program how often loops in it will iterate.

    Only the data decides it. `fmjax plan` reads the note, and nothing else does.
    """
    return jax.named_scope(f"{EXPECTED_TRIPS}{count}")


def experts_in_blocks(
    x: Float[Array, "R D"],
    experts: Int[Array, " R"],
    kernels: Kernels,
    feed_forward: FeedForward,
    expected: int,
) -> Float[Array, "R D"]:
    """Each row's expert applied to it; undefined for rows without an expert.

    The backward pass computes the experts again. Gradients of kernels are added up in
    float32.

    Args:
      x: rows; those without an expert may hold anything. So may their gradients, given
        and returned.
      experts: of each row, an index of `kernels`; any other number is none.
      kernels: [E, …] by name.
      feed_forward: (rows [N, D], kernels, product of rows and a kernel) → [N, D].
      expected: how many rows have an expert if experts are chosen evenly.
    """
    return _apply(feed_forward, expected, x, experts, kernels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apply(feed_forward, expected: int, x, experts, kernels):
    blocks = _Blocks(experts, len(kernels["in"]), expected)

    def visit(i, y):
        rows = blocks.rows(i)
        found = blocks.compute(feed_forward, i, x.at[rows].get(mode="clip"), kernels)
        return y.at[rows].set(found, mode="drop", unique_indices=True)

    return blocks.loop(visit, jax.lax.empty(x.shape, x.dtype))


def _forward(feed_forward, expected, x, experts, kernels):
    residuals = (x, experts, kernels)
    return _apply(feed_forward, expected, *residuals), residuals


def _backward(feed_forward, expected, residuals, gradient):
    x, experts, kernels = residuals
    blocks = _Blocks(experts, len(kernels["in"]), expected)

    def visit(i, carry):
        into_x, into_kernels = carry
        rows = blocks.rows(i)
        _, pull = jax.vjp(
            functools.partial(blocks.compute, feed_forward, i),
            x.at[rows].get(mode="clip"),
            kernels,
        )
        of_rows, of_kernels = pull(gradient.at[rows].get(mode="clip"))
        into_x = into_x.at[rows].set(of_rows, mode="drop", unique_indices=True)
        return into_x, jax.tree.map(
            lambda total, part: total + part.astype(total.dtype),
            into_kernels,
            of_kernels,
        )

    totals = jax.tree.map(
        lambda k: jnp.zeros(k.shape, jnp.promote_types(k.dtype, jnp.float32)), kernels
    )
    undefined = jax.lax.empty(x.shape, x.dtype)
    into_x, into_kernels = blocks.loop(visit, (undefined, totals))
    into_kernels = jax.tree.map(lambda g, k: g.astype(k.dtype), into_kernels, kernels)
    return into_x, None, into_kernels


_apply.defvjp(_forward, _backward)


def is_hidden(name: str) -> tuple[bool, bool]:
    """Whether the last two axes of one of `Kernels` are the hidden units of experts."""
    weight, _, part = name.partition("_")
    inward, outward = weight == "out", weight != "out"
    return inward and part in ("", "a"), outward and part != "a"


class _Blocks:
    """The rows that have an expert, sorted by expert, in blocks.

    Args:
      experts: as for `experts_in_blocks`.
      number: E, of experts.
      expected: rows with an expert, if experts are chosen evenly.
    """

    def __init__(self, experts: Int[Array, " R"], number: int, expected: int):
        R = len(experts)
        # The last block is half empty on average, and every block adds to gradients as
        # large as the kernels: with two or three neither counts for much.
        size = max(-(-expected // 2), min(R, SMALLEST_BLOCK))
        self._trips = expected // size + 1
        self._expected_rows = expected // self._trips
        experts = jnp.where((experts >= 0) & (experts < number), experts, number)
        order = jnp.argsort(experts).astype(jnp.int32)
        # Indices past the end, which writes drop. Each occurs once.
        beyond = jnp.arange(R, R + -R % size, dtype=jnp.int32)
        self._order = jnp.concatenate([order, beyond])
        counts = jnp.bincount(experts, length=number).astype(jnp.int32)
        self._ends, self._size = jnp.cumsum(counts), size
        self._starts = self._ends - counts

    def loop(self, visit: Callable, carry):
        """Visits (number of block, carry) all blocks that have rows."""
        trips = -(-self._ends[-1] // self._size)
        with expected_trips(self._trips):
            return jax.lax.fori_loop(0, trips, visit, carry)

    def rows(self, i: Int[Array, ""]) -> Int[Array, " N"]:
        """The places of a block's rows."""
        return jax.lax.dynamic_slice_in_dim(self._order, i * self._size, self._size)

    def compute(self, feed_forward, i, x, kernels) -> Float[Array, "N D"]:
        """The outputs of the experts for block i, whose rows are x."""
        first, last = i * self._size, (i + 1) * self._size
        sizes = jnp.clip(self._ends, first, last) - jnp.clip(self._starts, first, last)
        here = (first + jnp.arange(self._size) < self._ends[-1])[:, None]

        def multiply(rows, kernel):
            # Rows after the last group are undefined.
            return jnp.where(here, grouped_dot(rows, kernel, sizes), 0)

        with expected_rows(self._expected_rows):
            return feed_forward(jnp.where(here, x, 0), kernels, multiply)
