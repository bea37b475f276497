"""Chunked head: sums over a head's logits with the logits of one chunk of T in memory.

The gradients of a chunk are taken in the forward pass, while its logits are in memory,
and only scaled in the backward pass: no logits are kept, and none are computed twice.

On a mesh each device loops over the chunks of its own rows, within `shard_map` over the
axes that shard the batch: a head's weights are gathered once before the first chunk and
their gradients reduced over devices once after the last. XLA by itself would gather and
reduce in every chunk. Axes that shard the head (tensor) are left to XLA.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


def chunked_sums(
    sums: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]],
    variables: Any,
    hidden: Float[Array, "B T D"],
    arrays: tuple[Array, ...],
    chunks: int,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Adds up `sums` over chunks of T.

    Args:
      sums: (variables, hidden chunk, *chunks of arrays) → (differentiable scalars,
        scalars without gradient). The scalars must be sums over rows and positions;
        positions that T is padded with are zero in every array and must add nothing.
      variables: a tree of arrays; those that `sums` uses get gradients.
      hidden: input of the head; gets gradients.
      arrays: integer or weight arrays [B, T], split along with `hidden`.
      chunks: number of chunks of T; at most T are used.

    Returns:
      The two tuples, each scalar summed over all chunks.
    """
    T = hidden.shape[1]
    chunks = min(chunks, T)
    size = -(-T // chunks)
    padding = size * -(-T // size) - T

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        pieces = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(pieces, 1, 0)

    def join(pieces):
        x = jnp.moveaxis(pieces, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]

    axes = _batch_axes(hidden.shape[0])
    used, complete = _used(sums, variables, *(cut(x)[0] for x in (hidden, *arrays)))

    def of_chunk(used, *chunk):
        with _rules_without(axes):
            return sums(complete(used), *chunk)

    def zeros(used, *rows):
        chunk = (cut(x)[0] for x in rows)
        shapes = jax.eval_shape(of_chunk, used, *chunk)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def local_values(used, hidden, *arrays):
        """Sums of the rows of one device."""

        def step(carry, chunk):
            return _add(carry, of_chunk(used, *chunk)), None

        start = zeros(used, hidden, *arrays)
        values, _ = jax.lax.scan(step, start, (cut(hidden), *map(cut, arrays)))
        return values

    def local_gradients(used, hidden, *arrays):
        """Sums of the rows of one device, and gradients of the differentiable ones."""

        def step(carry, chunk):
            values, into_used = carry
            h, *rest = chunk
            out, pull, aux = jax.vjp(
                lambda used, h: of_chunk(used, h, *rest), used, h, has_aux=True
            )
            gradients = [pull(unit) for unit in _units(out)]
            into_used = [
                _add(have, new) for have, (new, _) in zip(into_used, gradients)
            ]
            return (_add(values, (out, aux)), into_used), [g for _, g in gradients]

        values = zeros(used, hidden, *arrays)
        into_used = [jax.tree.map(jnp.zeros_like, used) for _ in values[0]]
        (values, into_used), into_hidden = jax.lax.scan(
            step, (values, into_used), (cut(hidden), *map(cut, arrays))
        )
        return values, into_used, [join(g) for g in into_hidden]

    if axes:
        local_values = _on_own_rows(local_values, axes, gradients=False)
        local_gradients = _on_own_rows(local_gradients, axes, gradients=True)

    @jax.custom_vjp
    def run(used, hidden):
        return local_values(used, hidden, *arrays)

    def forward(used, hidden):
        values, *gradients = local_gradients(used, hidden, *arrays)
        return values, gradients

    def backward(residuals, cotangents):
        scales, _ = cotangents
        return tuple(_scaled_sum(gradients, scales) for gradients in residuals)

    run.defvjp(forward, backward)
    return run(used, hidden)


def _scaled_sum(trees: list, scales: tuple[Array, ...]):
    """The sum of trees of arrays, each multiplied by its scale."""
    scaled = (
        jax.tree.map(lambda g, s=s: g * s.astype(g.dtype), tree)
        for tree, s in zip(trees, scales)
    )
    return functools.reduce(_add, scaled)


def _used(sums: Callable, variables: Any, *chunk: Array):
    """The leaves that `sums` reads, and a function from them to the whole tree."""
    leaves, tree = jax.tree.flatten(variables)
    jaxpr = jax.make_jaxpr(lambda leaves: sums(tree.unflatten(leaves), *chunk))(leaves)
    read = {id(v) for e in jaxpr.eqns for v in e.invars}
    read |= {id(v) for v in jaxpr.jaxpr.outvars}
    places = [i for i, v in enumerate(jaxpr.jaxpr.invars) if id(v) in read]

    def complete(used):
        # The other leaves are not read, so it does not matter on which mesh they are.
        return tree.unflatten(
            used[places.index(i)] if i in places else leaf
            for i, leaf in enumerate(leaves)
        )

    return [leaves[i] for i in places], complete


def _batch_axes(rows: int) -> tuple[str, ...]:
    """Mesh axes of size > 1 that shard the rows; none if they do not divide `rows`."""
    mesh = jax.sharding.get_abstract_mesh()
    target = dict(nn.get_logical_axis_rules()).get("batch") or ()
    axes = (target,) if isinstance(target, str) else target
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    return axes if rows % shards == 0 else ()


def _rules_without(axes: tuple[str, ...]):
    """The logical rules without these mesh axes, which `shard_map` uses."""

    def rest(target):
        names = (target,) if isinstance(target, str) else target or ()
        return tuple(name for name in names if name not in axes) or None

    rules = nn.get_logical_axis_rules()
    return nn.logical_axis_rules([(name, rest(target)) for name, target in rules])


def _on_own_rows(function: Callable, axes: tuple[str, ...], gradients: bool):
    """`function` of (used, hidden, *arrays), applied by each device to its own rows.

    Weights are gathered, and their gradients reduced, in the dtype of `hidden`, the
    dtype in which every head multiplies them.
    """
    rows, whole = PartitionSpec(axes), PartitionSpec()

    def narrow(tree, dtype):
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, tree)

    def widen(tree, like):
        return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)

    def run(used, hidden, *arrays):
        def local(weights, hidden, *arrays):
            out = function(widen(weights, used), hidden, *arrays)
            if not gradients:
                return jax.lax.psum(out, axes)
            values, into_used, into_hidden = out
            into_used = narrow(into_used, hidden.dtype)
            return *jax.lax.psum((values, into_used), axes), into_hidden

        out = jax.shard_map(
            local,
            in_specs=(whole, rows, *(rows for _ in arrays)),
            out_specs=(whole, whole, rows) if gradients else whole,
            axis_names=set(axes),
            check_vma=False,
        )(narrow(used, hidden.dtype), hidden, *arrays)
        if not gradients:
            return out
        values, into_used, into_hidden = out
        return values, [widen(g, used) for g in into_used], into_hidden

    return run


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


def _units(outputs: tuple[Array, ...]):
    """For each output the cotangents that are 1 for it and 0 for the others."""
    for i in range(len(outputs)):
        yield tuple(
            jnp.ones_like(o) if i == j else jnp.zeros_like(o)
            for j, o in enumerate(outputs)
        )
