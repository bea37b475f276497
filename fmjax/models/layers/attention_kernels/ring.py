"""Ring attention: keys and values pass round the devices that share a sequence.

Liu et al. 2023. Each device has a part of the queries and of the keys. It attends to
its own keys, then to those of every other device in turn, while the next ones are on
their way, and adds up the outputs as blockwise attention does. In the backward pass the
gradients of keys and values travel with them. No device ever has all keys.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fmjax.models.layers.attention_kernels import placement
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.logical_axes import mesh_axes, shards


def refusal(call: AttentionCall) -> str | None:
    """Why a ring cannot compute the call; None if it can."""
    if call.unusual():
        return call.unusual()
    if call.mask.window is not None:
        return f"transformer.window = {call.mask.window}"
    for name, length in (("queries", call.q.shape[1]), ("keys", call.k.shape[1])):
        if length % shards("length"):
            return f"{shards('length')} devices do not divide {length} {name} a row"
    return placement.refusal(call)


def attention(call: AttentionCall, kernel: ModuleType) -> Float[Array, "B T H K"]:
    """The output of attention.

    Args:
      call: over sequences whose length is sharded.
      kernel: has `forward_piece` and `backward_piece`: "splash" or "blockwise".
    """
    length = mesh_axes("length")
    ring = _Ring(
        length,
        shards("length"),
        call.mask.causal,
        call.mask.zigzag,
        call.softcap,
        call.block,
        kernel,
    )
    mask = call.mask
    segments = None if mask.query_segment_ids is None else mask.key_segment_ids
    keys = _Keys(call.k, call.v, segments, mask.padding_mask)
    of_keys, of_rows = placement.of_keys(length), placement.of_rows(length)

    def row_spec(x):
        return PartitionSpec(None, length) if x is not None and len(x) == 1 else of_rows

    placed = _Keys(of_keys, of_keys, row_spec(segments), row_spec(mask.padding_mask))
    return jax.shard_map(
        functools.partial(_attention, ring),
        in_specs=(
            placement.of_queries(length),
            placed,
            row_spec(mask.query_segment_ids),
        ),
        out_specs=placement.of_queries(length),
        # Pallas calls do not declare over which mesh axes their outputs vary.
        check_vma=False,
    )(call.q * jnp.asarray(call.scale, call.q.dtype), keys, mask.query_segment_ids)


class _Keys(NamedTuple):
    """What travels: keys and values [B, S, G, K], and the mask's arrays [B, S]."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    segment_ids: Int[Array, "#B S"] | None
    padding_mask: Bool[Array, "#B S"] | None


class _Queries(NamedTuple):
    """What stays: scaled queries, their segments, and in the backward pass the rest."""

    q: Float[Array, "B T H K"]
    segment_ids: Int[Array, "#B T"] | None
    out: Float[Array, "B T H K"] | None = None
    log_sums: Float[Array, "B H T"] | None = None
    gradient: Float[Array, "B T H K"] | None = None


@dataclasses.dataclass(frozen=True)
class _Ring:
    """A ring of devices, and which keys of another device each attends to.

    Attributes:
      axes: the mesh axes of the ring.
      size: number of devices.
      causal: whether queries attend only to keys before them.
      zigzag: whether the sequence is in zig-zag order.
      softcap: of the scores.
      block: see `AttentionCall`.
      kernel: that attends to a part of the keys.
    """

    axes: tuple[str, ...]
    size: int
    causal: bool
    zigzag: bool
    softcap: float | None
    block: int | None
    kernel: ModuleType

    def passed(self, tree):
        """What the device before has."""
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, pairs), tree)

    def round(self, keys: _Keys, carry, visit: Callable):
        """Visits the keys of all other devices, each while the next are on their way.

        Args:
          keys: of this device.
          carry: passed from visit to visit.
          visit: (carry, keys, hop), the keys of the device `hop` places before → carry.
        """
        first = self.passed(keys)

        def step(state, hop):
            carry, here = state
            ahead = self.passed(here)
            return (visit(carry, here, hop), ahead), None

        # They are made to depend on the keys: before a scan over layers JAX computes
        # and keeps, for all hops, what depends on no layer's input, such as masks.
        hops, _ = jax.lax.optimization_barrier((jnp.arange(1, self.size), keys.k))
        (carry, last), _ = jax.lax.scan(step, (carry, first), hops[:-1])
        return visit(carry, last, hops[-1])

    def seen(
        self, hop: Int[Array, ""], whole: Callable, halves: Callable, none: Callable
    ):
        """Computes what the queries see of the keys of the device `hop` places before.

        Args:
          hop: 1 to size - 1.
          whole: () → result, where all queries see all keys.
          halves: (of queries, of keys) → result, the halves that see each other: of the
            queries (all, or the second) and of the keys (the first, or all).
          none: () → result, where no query sees a key.
        """
        if not self.causal:
            return whole()
        # Beyond the first device the ring goes on from the last, whose keys come later.
        earlier = jax.lax.axis_index(self.axes) >= hop
        if self.zigzag:
            return jax.lax.cond(
                earlier, lambda: halves(False, True), lambda: halves(True, False)
            )
        return jax.lax.cond(earlier, whole, none)

    def call(self, queries: _Queries, keys: _Keys, causal: bool) -> AttentionCall:
        """Attention of these queries to these keys."""
        mask = AttentionMask(
            causal=causal,
            query_segment_ids=queries.segment_ids,
            key_segment_ids=keys.segment_ids,
            padding_mask=keys.padding_mask,
        )
        q, k, v = queries.q, keys.k, keys.v
        options = (None, 1.0, self.softcap, 0.0, None, self.block)
        return AttentionCall(q, k, v, mask, *options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(ring: _Ring, q: Array, keys: _Keys, segment_ids: Array | None) -> Array:
    """The output for the queries of this device."""
    return _forward(ring, q, keys, segment_ids)[0]


def _forward(ring, q, keys, segment_ids):
    queries = _Queries(q, segment_ids)

    def attend(queries, keys, causal=False):
        out, log_sums = ring.kernel.forward_piece(ring.call(queries, keys, causal))
        return out.astype(jnp.float32), log_sums

    def halves(queries, keys, second, first):
        out, log_sums = attend(
            _second_half(queries) if second else queries,
            _first_half(keys) if first else keys,
        )
        if not second:
            return out, log_sums
        return (
            jnp.concatenate([jnp.zeros_like(out), out], axis=1),
            jnp.concatenate([jnp.full_like(log_sums, -jnp.inf), log_sums], axis=2),
        )

    def visit(carry, keys, hop):
        out, log_sums = carry
        more, more_log_sums = ring.seen(
            hop,
            lambda: attend(queries, keys),
            lambda second, first: halves(queries, keys, second, first),
            lambda: (jnp.zeros_like(out), jnp.full_like(log_sums, -jnp.inf)),
        )
        both = jnp.logaddexp(log_sums, more_log_sums)
        return (
            out * _of_queries(jnp.exp(log_sums - both))
            + more * _of_queries(jnp.exp(more_log_sums - both)),
            both,
        )

    out, log_sums = ring.round(keys, attend(queries, keys, ring.causal), visit)
    out = checkpoint_name(out.astype(q.dtype), "attention")
    log_sums = checkpoint_name(log_sums, "attention")
    return out, (q, keys, segment_ids, out, log_sums)


def _backward(ring, residuals, gradient):
    q, keys, segment_ids, out, log_sums = residuals
    queries = _Queries(q, segment_ids, out, log_sums, gradient)

    def back(queries, keys, causal=False):
        found = ring.kernel.backward_piece(
            ring.call(queries, keys, causal),
            queries.out,
            queries.log_sums,
            queries.gradient,
        )
        return tuple(x.astype(jnp.float32) for x in found)

    def halves(queries, keys, second, first):
        into_q, into_k, into_v = back(
            _second_half(queries) if second else queries,
            _first_half(keys) if first else keys,
        )
        if second:
            into_q = jnp.concatenate([jnp.zeros_like(into_q), into_q], axis=1)
        if first:
            into_k, into_v = (
                jnp.concatenate([x, jnp.zeros_like(x)], axis=1)
                for x in (into_k, into_v)
            )
        return into_q, into_k, into_v

    def visit(carry, keys, hop):
        into_q, *into_keys = carry
        # The gradients of keys travel one hop behind these, while the kernel runs.
        into_keys = ring.passed(into_keys)
        found = ring.seen(
            hop,
            lambda: back(queries, keys),
            lambda second, first: halves(queries, keys, second, first),
            lambda: tuple(jnp.zeros_like(x) for x in (into_q, *into_keys)),
        )
        return tuple(a + b for a, b in zip((into_q, *into_keys), found))

    own = back(queries, keys, ring.causal)
    into_q, *into_keys = ring.round(keys, own, visit)
    into_k, into_v = ring.passed(into_keys)
    into_keys = _Keys(
        into_k.astype(keys.k.dtype), into_v.astype(keys.v.dtype), None, None
    )
    return into_q.astype(q.dtype), into_keys, None


_attention.defvjp(_forward, _backward)


def _of_queries(x: Float[Array, "B H T"]) -> Float[Array, "B T H 1"]:
    return jnp.swapaxes(x, 1, 2)[..., None]


def _first_half(keys: _Keys) -> _Keys:
    return jax.tree.map(lambda x: jnp.split(x, 2, axis=1)[0], keys)


def _second_half(queries: _Queries) -> _Queries:
    def half(x, axis=1):
        return None if x is None else jnp.split(x, 2, axis)[1]

    return _Queries(
        half(queries.q),
        half(queries.segment_ids),
        half(queries.out),
        half(queries.log_sums, 2),
        half(queries.gradient),
    )
