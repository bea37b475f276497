"""Constant factors of a model's forward pass that a parametrization sets."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.errors import require


@configurable("multipliers")
@dataclasses.dataclass(frozen=True)
class Multipliers:
    """Constant factors in the forward pass of a stack and its model.

    Parametrizations such as @mup() set them, see `fmjax.optim.mup`.

    Attributes:
      tokens: of token vectors, before positions are added.
      embedding: of the sum of token or patch vectors and positions, the input of the
        stack.
      attention: of attention scores, beside transformer.attention_scale; the initial
        query weights do not depend on it.
      residual: of the output of each layer before it is added to the residual stream.
      logits: of the logits of the language head, before their bias.
    """

    tokens: float = 1.0
    embedding: float = 1.0
    attention: float = 1.0
    residual: float = 1.0
    logits: float = 1.0

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(self, field.name, value > 0, "a number above 0")


def multiply(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """factor · x in the dtype of x; x itself for a factor of 1."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)
