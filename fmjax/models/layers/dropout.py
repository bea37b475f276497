"""Dropout and stochastic depth, with one random key per example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Keys = Key[Array, " B"] | None


def fold_keys(keys: Keys, data: int | jax.Array) -> Keys:
    """New keys for one place in the model, one per example; None stays None."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: Float[Array, "B ..."], rate: float, keys: Keys) -> Array:
    """Zeroes a share `rate` of `x` and scales up the rest (Srivastava et al. 2014).

    Each example draws with its own key, so that neither the mesh nor the microbatch
    an example falls into changes what is dropped. Without keys nothing is.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path(
    x: Float[Array, "B ..."], rate: float | Float[Array, ""], keys: Keys
) -> Array:
    """Zeroes `x` of a share `rate` of examples and scales up the others'.

    Without keys nothing is zeroed.
    """
    if keys is None:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    keep = keep.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
