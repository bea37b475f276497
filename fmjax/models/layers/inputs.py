"""Input embedding of a transformer: token vectors, positions and token types."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.errors import UserError
from fmjax.models.layers.dropout import Keys, dropout
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.logical_axes import constrain
from fmjax.models.layers.multipliers import multiply
from fmjax.models.layers.position_bias import sinusoids
from fmjax.models.layers.transformer_config import TransformerConfig

Positions = Literal[
    "learned", "sinusoidal", "sinusoidal_halves", "sinusoidal_inclusive", "none"
]


class InputEmbedding(nn.Module):
    """Input embedding: token vectors plus positions and types, with norm and dropout.

    Attributes:
      config: of the transformer that reads the result.
      max_length: number of positions.
      positions: "learned", "sinusoidal" (Vaswani et al. 2017), "sinusoidal_halves" (all
        sines first, then the cosines), "sinusoidal_inclusive" (likewise, with
        frequencies that end with 1/10000, as in tensor2tensor and fairseq), or "none".
      position_offset: row of position 0 in the learned table; the rows before it are
        for padding, as in OPT, RoBERTa and BART. Of "sinusoidal_inclusive" it is what
        positions are counted from, and negative positions are those of padding, which
        has zeros (M2M-100).
      num_token_types: rows of the table of token types; 0 for none.
      norm: whether the sum is normalized.
      scale: whether token vectors are multiplied by sqrt(D).
    """

    config: TransformerConfig
    max_length: int
    positions: Positions
    position_offset: int = 0
    num_token_types: int = 0
    norm: bool = False
    scale: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "#B T"],
        token_types: Int[Array, "B T"] | None,
        keys: Keys,
    ) -> Float[Array, "B T D"]:
        """Embeds token vectors `x`, whose width E may differ from the transformer's."""
        c = self.config
        width = x.shape[-1]
        if self.scale:
            # The factor is rounded to x's dtype, as in the models of published weights.
            x = x * jnp.asarray(width**0.5, x.dtype)
        x = multiply(x, c.multipliers.tokens)
        if self.num_token_types:
            types = Embedding(
                self.num_token_types,
                width,
                "token_type",
                c.init_std,
                c.compute_dtype,
                name="token_types",
            )
            if token_types is None:
                token_types = jnp.zeros((1, 1), jnp.int32)
            x = x + types(token_types)
        if self.positions == "learned":
            table = Embedding(
                self.max_length + self.position_offset,
                width,
                "position",
                c.init_std,
                c.compute_dtype,
                name="positions",
            )
            x = x + table(positions + self.position_offset)
        elif self.positions == "sinusoidal_inclusive":
            at = positions + self.position_offset
            wave = sinusoids(at, width, interleaved=False, inclusive=True)
            x = x + jnp.where(positions[..., None] < 0, 0.0, wave).astype(x.dtype)
        elif self.positions != "none":
            interleaved = self.positions == "sinusoidal"
            x = x + sinusoids(positions, width, interleaved).astype(x.dtype)
        x = multiply(x, c.multipliers.embedding)
        if self.norm:
            x = c.make_norm("norm")(x)
        return dropout(constrain(x, "batch", "length", "act_embed"), c.dropout, keys)


def check_positions(model: nn.Module, *stacks: str) -> None:
    """Raises UserError if a stack has no positions, so that it ignores token order.

    Args:
      model: with `positions`.
      stacks: its fields that hold a `TransformerConfig` or None.
    """
    for field in stacks:
        c = getattr(model, field)
        told = c is None or c.rotary is not None or c.position_bias is not None
        if model.positions == "none" and not told:
            raise UserError(
                f"{model.gin_name}.positions = 'none' and, of {model.gin_name}.{field},"
                " transformer.rotary = None and transformer.position_bias = None "
                "leave the model without positions; set one of them."
            )


def outputs(out: dict) -> dict[str, Array]:
    """The outputs of a stack that a model passes on to its callers."""
    return {name: x for name, x in out.items() if name not in ("cache", "router")}
