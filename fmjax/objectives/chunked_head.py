"""Chunked head: sums over a head's logits with the logits of one chunk of T in memory.

The gradients of a chunk are taken in the forward pass, while its logits are in memory,
and only scaled in the backward pass: no logits are kept, and none are computed twice.
Where it needs no more memory, the gradients of the logits of all chunks are kept
instead of a sum of the head's gradients, which are then taken in one product.

On a mesh each device loops over the chunks of its own rows and positions, within
`shard_map` over the axes that shard batch and length: a head's weights are gathered
once before the first chunk and their gradients reduced over devices once after the
last. XLA by itself would gather and reduce in every chunk. Axes that shard the head
(tensor) are left to XLA.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fmjax.models.layers.head_product import Product, recorded_products
from fmjax.models.layers.logical_axes import mesh_axes, rules_without, shards


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
    B, T, _ = hidden.shape
    by_rows, by_length = _axes_that_divide("batch", B), _axes_that_divide("length", T)
    axes = by_rows + by_length
    size = -(-T // min(chunks, T))
    size = min(size, T // shards("length") if by_length else T)

    def cut(x):
        padding = -x.shape[1] % size
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        pieces = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(pieces, 1, 0)

    def join(pieces, length):
        x = jnp.moveaxis(pieces, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    used, complete = _used(sums, variables, *(cut(x)[0] for x in (hidden, *arrays)))

    def of_chunk(used, *chunk):
        with rules_without(axes):
            return sums(complete(used), *chunk)

    def zeros(used, *rows):
        chunk = (cut(x)[0] for x in rows)
        shapes = jax.eval_shape(of_chunk, used, *chunk)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def local_values(used, hidden, *arrays):
        """Sums of the part of one device."""

        def step(carry, chunk):
            return _add(carry, of_chunk(used, *chunk)), None

        start = zeros(used, hidden, *arrays)
        values, _ = jax.lax.scan(step, start, (cut(hidden), *map(cut, arrays)))
        return values

    def local_gradients(used, hidden, *arrays):
        """Sums of the part of one device, gradients of the differentiable ones."""
        first = [cut(x)[0] for x in (hidden, *arrays)]
        product = _product_to_defer(of_chunk, used, hidden, *first)
        offset = None
        if product is not None:
            offset = jnp.zeros(
                (*product.x.shape[:-1], product.kernel.shape[1]), product.x.dtype
            )

        def recorded(used, offset, *chunk):
            with recorded_products(offset) as products:
                out, aux = of_chunk(used, *chunk)
            return out, (aux, products[0].x if offset is not None else None)

        def step(carry, chunk):
            values, into_used = carry
            h, *rest = chunk
            out, pull, (aux, x) = jax.vjp(
                lambda used, h, offset: recorded(used, offset, h, *rest),
                used,
                h,
                offset,
                has_aux=True,
            )
            gradients = [pull(unit) for unit in _units(out)]
            into_used = [_add(have, g[0]) for have, g in zip(into_used, gradients)]
            carry = _add(values, (out, aux)), into_used
            return carry, ([g[1] for g in gradients], x, [g[2] for g in gradients])

        values = zeros(used, hidden, *arrays)
        into_used = [jax.tree.map(jnp.zeros_like, used) for _ in values[0]]
        (values, into_used), (into_hidden, x, into_outputs) = jax.lax.scan(
            step, (values, into_used), (cut(hidden), *map(cut, arrays))
        )
        if product is not None:
            _, pull = jax.vjp(
                lambda used: _product(of_chunk, used, *first).kernel, used
            )
            for place, into_output in enumerate(into_outputs):
                into_kernel = jnp.einsum("nbti,nbto->io", x, into_output)
                into_used[place] = _add(into_used[place], *pull(into_kernel))
        return values, into_used, [join(g, hidden.shape[1]) for g in into_hidden]

    if axes:
        placed = PartitionSpec(by_rows, by_length)
        local_values = _on_own_part(local_values, placed, axes, gradients=False)
        local_gradients = _on_own_part(local_gradients, placed, axes, gradients=True)

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


def _product(of_chunk: Callable, used, *chunk: Array) -> Product | None:
    """The product of the head of a chunk; None if it is not exactly one."""
    with recorded_products() as products:
        of_chunk(used, *chunk)
    return products[0] if len(products) == 1 else None


def _product_to_defer(of_chunk, used, hidden, *chunk: Array) -> Product | None:
    """The product whose kernel's gradient is taken after all chunks; None for none.

    The gradients of its outputs, of all chunks, are then kept. They must not need more
    memory than a float32 sum of the kernel's gradients would.
    """
    with recorded_products() as products:
        jax.eval_shape(of_chunk, used, *chunk)
    if len(products) != 1 or products[0].x.ndim != 3:
        return None
    x, kernel = products[0]
    rows, length, _ = hidden.shape
    # Bytes for each output of the head.
    kept, summed = rows * length * x.dtype.itemsize, len(kernel) * 4
    return products[0] if kept <= summed else None


def _axes_that_divide(name: str, size: int) -> tuple[str, ...]:
    """The mesh axes of a logical axis; none if they do not divide its size."""
    return () if size % shards(name) else mesh_axes(name)


def _on_own_part(
    function: Callable, placed: PartitionSpec, axes: tuple[str, ...], gradients: bool
):
    """`function` of (used, hidden, *arrays), applied by each device to its own part.

    The arrays are placed by `placed`, over the mesh axes `axes`.

    Weights are gathered, and their gradients reduced, in the dtype of `hidden`, the
    dtype in which every head multiplies them.
    """
    whole = PartitionSpec()

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
            in_specs=(whole, placed, *(placed for _ in arrays)),
            out_specs=(whole, whole, placed) if gradients else whole,
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
