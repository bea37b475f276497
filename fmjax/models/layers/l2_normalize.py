"""Vectors of unit length, as contrastive losses compare them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """x / ‖x‖ in float32; a zero vector stays zero."""
    x = x.astype(jnp.float32)
    squares = (x * x).sum(-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, 1e-24))
