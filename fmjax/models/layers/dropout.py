"""Dropout and stochastic depth, with one random key per example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Keys = Key[Array, " B"] | None


def fold_keys(keys: Keys, data: int | jax.Array) -> Keys:
    """Derives new keys, one per example, for a place in the model; None stays None."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(
    x: Float[Array, "B ..."], rate: float | Float[Array, ""], keys: Keys
) -> Array:
    """Dropout (Srivastava et al. 2014): zeroes a share `rate` of x, scales up the rest.

    Each example has its own key, so that the result depends neither on the mesh nor on
    the microbatch of an example. Without keys `x` is returned unchanged.
    """
    if keys is None or (isinstance(rate, float) and rate == 0.0):
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path(
    x: Float[Array, "B ..."], rate: float | Float[Array, ""], keys: Keys
) -> Array:
    """Stochastic depth (Huang et al. 2016): zeroes x for a share `rate` of examples.

    The other examples are scaled up. Without keys `x` is returned unchanged.
    """
    if keys is None:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    keep = keep.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
