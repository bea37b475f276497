"""Sums over a head's logits that never hold the logits of more than a chunk of T.

The gradients of a chunk are taken in the forward pass, while its logits are there,
and only scaled in the backward pass: no logits are kept, and none are computed twice.
Chunks cut T and not the flattened tokens, so that each device keeps to its own rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def chunked_sums(
    sums: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]],
    hidden: Float[Array, "B T D"],
    arrays: tuple[Array, ...],
    chunks: int,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Adds up `sums` over chunks of T.

    Args:
      sums: (hidden chunk, *chunks of arrays) → (differentiable scalars, scalars that no
        gradient is taken of). It may close over parameters; a chunk that `T` was padded
        with has zeros in every array and must add nothing.
      hidden: what the head reads; gradients flow into it and into what `sums` closes
        over.
      arrays: integer or weight arrays [B, T], cut along with `hidden`.
      chunks: pieces that T is cut into, at most T.

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

    example = (cut(hidden)[0], *(cut(a)[0] for a in arrays))
    converted, captured = jax.closure_convert(sums, *example)

    def evaluate(hidden, captured):
        def step(carry, chunk):
            return _add(carry, converted(*chunk, *captured)), None

        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(converted, *example, *captured),
        )
        pieces = (cut(hidden), *map(cut, arrays))
        return jax.lax.scan(step, zeros, pieces)[0]

    @jax.custom_vjp
    def run(hidden, captured):
        return evaluate(hidden, captured)

    def forward(hidden, captured):
        def step(carry, chunk):
            values, into_captured = carry
            h, *rest = chunk
            out, pull, aux = jax.vjp(
                lambda h, captured: converted(h, *rest, *captured),
                h,
                captured,
                has_aux=True,
            )
            gradients = [pull(unit) for unit in _units(out)]
            into_captured = [
                _add(have, new) for have, (_, new) in zip(into_captured, gradients)
            ]
            into_hidden = tuple(g for g, _ in gradients)
            return (_add(values, (out, aux)), into_captured), into_hidden

        shapes = jax.eval_shape(converted, *example, *captured)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        start = [jax.tree.map(jnp.zeros_like, captured) for _ in shapes[0]]
        (values, into_captured), into_hidden = jax.lax.scan(
            step, (zeros, start), (cut(hidden), *map(cut, arrays))
        )
        return values, (into_captured, tuple(join(g) for g in into_hidden))

    def backward(residuals, cotangents):
        into_captured, into_hidden = residuals
        scales, _ = cotangents
        hidden_grad = sum(g * s.astype(g.dtype) for g, s in zip(into_hidden, scales))
        captured_grad = None
        for gradient, scale in zip(into_captured, scales):
            scaled = jax.tree.map(lambda g, s=scale: g * s.astype(g.dtype), gradient)
            captured_grad = (
                scaled if captured_grad is None else _add(captured_grad, scaled)
            )
        return hidden_grad, captured_grad

    run.defvjp(forward, backward)
    return run(hidden, captured)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


def _units(outputs: tuple[Array, ...]):
    """One cotangent for each output: one there, zero elsewhere."""
    for i in range(len(outputs)):
        yield tuple(
            jnp.ones_like(o) if i == j else jnp.zeros_like(o)
            for j, o in enumerate(outputs)
        )
