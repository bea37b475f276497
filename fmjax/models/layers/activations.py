"""Activation functions, by their names in configs."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    # GPT-1's approximation of gelu, also used by OpenAI's CLIP.
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "tanh": jnp.tanh,
}
