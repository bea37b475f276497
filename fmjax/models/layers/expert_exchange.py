"""All-to-all between devices that share experts: tokens travel to their experts.

Every device sends each other one the rows for its experts, and gets their outputs back
(Lepikhin et al. 2021). Only rows that exist are sent where XLA has a ragged all-to-all,
on TPUs and GPUs; XLA for CPUs has none, and sends room for all rows to every device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.models.layers.expert_blocks import FeedForward, experts_in_blocks
from fmjax.sharding.platform import platform


def exchange(
    x: Float[Array, "M D"],
    rows: Int[Array, " N"],
    experts: Int[Array, " N"],
    kernels: dict[str, Array],
    *,
    feed_forward: FeedForward,
    axes: tuple[str, ...],
) -> Float[Array, "N D"]:
    """The outputs of experts of other devices; called within `shard_map`.

    Args:
      x: of this device.
      rows: indices of rows of x, each once for each of its experts.
      experts: the index, among all, of the expert of each.
      kernels: of this device's experts, a leading axis of as many as every device has.
      feed_forward: (rows [M, D], kernels, product of rows and a kernel) → [M, D].
      axes: mesh axes over which the experts are sharded.
    """
    N, own = len(rows), len(kernels["in"])
    n = jax.lax.axis_size(axes)
    me = jax.lax.axis_index(axes)
    order = jnp.argsort(experts)
    counts = jnp.bincount(experts, length=n * own).astype(jnp.int32)
    # Rows that each device has for each expert, [sender, receiver, expert].
    every = jax.lax.all_gather(counts, axes).reshape(n, n, own)
    sizes = every.sum(-1)
    starts = jnp.cumsum(sizes, axis=1) - sizes  # in the sender's sorted rows

    # Each sender has room for all of its rows with each receiver.
    sent = _send(x[rows[order]], starts, sizes, me, axes)
    ends = jnp.cumsum(every[:, me], axis=1)
    own_experts = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(N), "right"))
    of_rows = own_experts(ends).reshape(-1)
    # As many rows come as go if experts are chosen evenly.
    outputs = experts_in_blocks(
        sent.reshape(n * N, -1), of_rows, kernels, feed_forward, expected=N
    )
    back = _send_back(outputs.reshape(n, N, -1), starts, sizes, me, axes)
    return back[jnp.argsort(order)]


def _send(rows, starts, sizes, me, axes) -> Float[Array, "n N D"]:
    """What every sender has for this device, each in the first places of its N.

    The other places are undefined.

    Args:
      rows: [N, D], sorted by receiver.
      starts: [n, n], of what sender i has for receiver j.
      sizes: [n, n], the number of these rows.
      me: index of this device.
      axes: mesh axes.
    """
    N, n = len(rows), len(starts)
    if platform() == "cpu":
        places = starts[me][:, None] + jnp.arange(N)
        room = jnp.where(
            (jnp.arange(N) < sizes[me][:, None])[..., None],
            rows[jnp.minimum(places, N - 1)],
            0,
        )
        return jax.lax.all_to_all(room, axes, 0, 0)
    sent = _travel(axes, True, rows, *_ways(starts, sizes, me, N))
    return sent.reshape(n, N, -1)


def _send_back(outputs, starts, sizes, me, axes) -> Float[Array, "N D"]:
    """The outputs of this device's rows, sorted as they were sent.

    Args:
      outputs: [n, N, D], of every sender's rows.
      starts: as for `_send`.
      sizes: as for `_send`.
      me: index of this device.
      axes: mesh axes.
    """
    n, N, D = outputs.shape
    if platform() == "cpu":
        room = jax.lax.all_to_all(outputs, axes, 0, 0)
        ends = starts[me] + sizes[me]
        receiver = jnp.searchsorted(ends, jnp.arange(N), "right")
        receiver = jnp.minimum(receiver, n - 1)
        return room[receiver, jnp.arange(N) - starts[me][receiver]]
    there, back = _ways(starts, sizes, me, N)
    return _travel(axes, False, outputs.reshape(n * N, D), back, there)


class _Way(NamedTuple):
    """Of what a device sends and receives, each int32 [n], by the other device.

    Attributes:
      starts: in what it sends.
      sizes: of what it sends.
      places: of what it sends, in what the other receives.
      arriving: sizes of what it receives.
    """

    starts: Int[Array, " n"]
    sizes: Int[Array, " n"]
    places: Int[Array, " n"]
    arriving: Int[Array, " n"]


def _ways(starts, sizes, me, room: int) -> tuple[_Way, _Way]:
    """The ways of rows to their experts, where senders have `room` each, and back."""
    n = len(starts)
    mine = jnp.full(n, me * room, jnp.int32)
    theirs = jnp.arange(n, dtype=jnp.int32) * room
    return (
        _Way(starts[me], sizes[me], mine, sizes[:, me]),
        _Way(theirs, sizes[:, me], starts[:, me], sizes[me]),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _travel(axes, to_experts: bool, rows, way: _Way, back: _Way) -> Float[Array, "S D"]:
    """The rows that arrive at this device; gradients take the way back.

    Args:
      axes: mesh axes.
      to_experts: whether they go to experts, which have room for all rows of every
        device, or come back. Room that is not filled is undefined: zeros would take as
        long to write as experts take to multiply.
      rows: [R, D], of this device.
      way: that they take.
      back: the way that brings them back to their places.
    """
    N, n = len(rows), len(way.sizes)
    D, dtype = rows.shape[1], rows.dtype
    into = (
        jax.lax.empty((n * N, D), dtype)
        if to_experts
        else jnp.zeros((N // n, D), dtype)
    )
    return jax.lax.ragged_all_to_all(rows, into, *way, axis_name=axes)


def _travel_forward(axes, to_experts, rows, way, back):
    return _travel(axes, to_experts, rows, way, back), (way, back)


def _travel_backward(axes, to_experts, ways, gradient):
    way, back = ways
    return _travel(axes, not to_experts, gradient, back, way), None, None


_travel.defvjp(_travel_forward, _travel_backward)
