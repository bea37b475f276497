"""Activation functions, by their names in configs."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    # GPT-1's approximation of gelu, also used by OpenAI's CLIP.
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "tanh": jnp.tanh,
}


def clamped_swiglu(gate: Array, x: Array) -> Array:
    """The gated unit of gpt-oss (OpenAI 2025): (x + 1) · gate · sigmoid(1.702 · gate).

    The gate is at most 7, and x between -7 and 7.
    """
    gate = jnp.minimum(gate, 7.0)
    return (jnp.clip(x, -7.0, 7.0) + 1) * ACTIVATIONS["quick_gelu"](gate)


def gate_with(activation: str, gate: Array, x: Array) -> Array:
    """A gated linear unit (Shazeer 2020): act(gate) · x, or `clamped_swiglu`."""
    if activation == "clamped_swiglu":
        return clamped_swiglu(gate, x)
    return ACTIVATIONS[activation](gate) * x
