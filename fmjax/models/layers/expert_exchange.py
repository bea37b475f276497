"""All-to-all between devices that share experts: tokens travel to their experts.

Every device sends each other one the rows for its experts, and gets their outputs back
(Lepikhin et al. 2021). Only rows that exist are sent where XLA has a ragged all-to-all,
on TPUs and GPUs; XLA for CPUs has none, and sends room for all rows to every device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.sharding.platform import platform


def exchange(
    x: Float[Array, "M D"],
    rows: Int[Array, " N"],
    experts: Int[Array, " N"],
    kernels: dict[str, Array],
    *,
    apply: Callable[[Array, Array, Array, Any], Array],
    axes: tuple[str, ...],
) -> Float[Array, "N D"]:
    """The outputs of experts of other devices; called within `shard_map`.

    Args:
      x: of this device.
      rows: indices of rows of x, each once for each of its experts.
      experts: the index, among all, of the expert of each.
      kernels: of this device's experts, a leading axis of as many as every device has.
      apply: (x, indices of its rows, their experts, kernels) → outputs; zero for rows
        whose expert is no index of `kernels`.
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
    sent = _send(x[rows[order]], starts[me], sizes[me], sizes[:, me], axes)
    ends = jnp.cumsum(every[:, me], axis=1)
    own_experts = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(N), "right"))
    outputs = apply(
        sent.reshape(n * N, -1),
        jnp.arange(n * N),
        own_experts(ends).reshape(-1),
        kernels,
    )
    back = _send_back(outputs.reshape(n, N, -1), starts, sizes, me, axes)
    return back[jnp.argsort(order)]


def _send(rows, starts, sizes, arriving, axes) -> Float[Array, "n N D"]:
    """What every sender has for this device, each in the first places of its N.

    Args:
      rows: [N, D], sorted by receiver.
      starts: [n], of each receiver's rows.
      sizes: [n], their number.
      arriving: [n], rows that each sender has for this device.
      axes: mesh axes.
    """
    N, n = len(rows), len(starts)
    if platform() == "cpu":
        places = starts[:, None] + jnp.arange(N)
        room = jnp.where(
            (jnp.arange(N) < sizes[:, None])[..., None],
            rows[jnp.minimum(places, N - 1)],
            0,
        )
        return jax.lax.all_to_all(room, axes, 0, 0)
    empty = jnp.zeros((n * N, rows.shape[1]), rows.dtype)
    mine = jnp.full(n, jax.lax.axis_index(axes) * N, jnp.int32)
    sent = jax.lax.ragged_all_to_all(
        rows, empty, starts, sizes, mine, arriving, axis_name=axes
    )
    return sent.reshape(n, N, -1)


def _send_back(outputs, starts, sizes, me, axes) -> Float[Array, "N D"]:
    """The outputs of this device's rows, sorted as they were sent.

    Args:
      outputs: [n, N, D], of every sender's rows.
      starts: [n, n], of what sender i has for receiver j.
      sizes: [n, n], the number of these rows.
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
    empty = jnp.zeros((N, D), outputs.dtype)
    from_places = jnp.arange(n, dtype=jnp.int32) * N
    return jax.lax.ragged_all_to_all(
        outputs.reshape(n * N, D),
        empty,
        from_places,
        sizes[:, me],
        starts[:, me],
        sizes[me],
        axis_name=axes,
    )
