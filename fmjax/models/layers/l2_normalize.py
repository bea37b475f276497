"""L2 normalization."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """L2 normalization over the last axis: x / ‖x‖ in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    squares = (x * x).sum(-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, 1e-24))
