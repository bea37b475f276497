"""The product of a language head, whose gradient can be taken apart from the rest.

A loss that computes logits chunk by chunk gets a gradient of the whole kernel from
every chunk. With the inputs of the product and the gradients of its outputs, of all
chunks, it can take that gradient in one product at the end instead.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.models.layers.dense import matmul


class Product(NamedTuple):
    """The operands of a product: x [..., I] and kernel [I, O]."""

    x: Array
    kernel: Array


class _Recording(NamedTuple):
    products: list[Product]
    offset: Array | None


_recording: contextvars.ContextVar[_Recording | None] = contextvars.ContextVar(
    "recording", default=None
)


@contextlib.contextmanager
def recorded_products(offset: Array | None = None) -> Iterator[list[Product]]:
    """Context manager: a list of the products of heads that are computed inside.

    Args:
      offset: [..., O], zeros. Given one, kernels get no gradient, and the gradient of
        the output becomes that of `offset`, in its dtype.
    """
    recording = _Recording([], offset)
    token = _recording.set(recording)
    try:
        yield recording.products
    finally:
        _recording.reset(token)


def head_product(
    x: Float[Array, "... I"], kernel: Float[Array, "I O"]
) -> Float[Array, "... O"]:
    """x @ kernel in float32, see `matmul` and `recorded_products`."""
    recording = _recording.get()
    if recording is None:
        return matmul(x, kernel, jnp.dtype("float32"))
    recording.products.append(Product(x, kernel))
    if recording.offset is None:
        return matmul(x, kernel, jnp.dtype("float32"))
    y = matmul(x, jax.lax.stop_gradient(kernel), jnp.dtype("float32"))
    return _with_gradient_to(recording.offset, y)


@jax.custom_vjp
def _with_gradient_to(offset: Array, y: Array) -> Array:
    del offset
    return y


def _forward(offset, y):
    return y, jnp.zeros((), offset.dtype)


def _backward(like, gradient):
    return gradient.astype(like.dtype), gradient


_with_gradient_to.defvjp(_forward, _backward)
