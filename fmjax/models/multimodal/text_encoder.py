"""A text encoder that gives one vector for a text, as in CLIP and SigLIP."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import self_attention
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    check_length,
    check_sizes,
    outputs,
)
from fmjax.models.layers.language_head import padded
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig

Pooling = Literal["last_token", "eos", "highest_id", "last_place"]


@configurable("text_encoder")
class TextEncoder(nn.Module):
    """A transformer over tokens; the vector of one of them embeds the text.

    Attributes:
      transformer: the stack's sizes and choices.
      vocab_size: V.
      max_length: the longest text; learned positions have as many rows.
      attention: "causal" (CLIP), or "full": every token reads every other (SigLIP).
      pooling: which one: the "last_token" that is no padding by padding_mask; "eos",
        the first of eos_id; the "highest_id", as end-of-text is in OpenAI's CLIP; or
        the "last_place", padding or not (SigLIP).
      eos_id: for "eos".
      vocab_multiple: the table is padded to a multiple of this, so that it shards.
    """

    transformer: TransformerConfig
    vocab_size: int
    max_length: int
    attention: Literal["causal", "full"] = "causal"
    pooling: Pooling = "last_token"
    eos_id: int | None = None
    vocab_multiple: int = 128

    def __post_init__(self):
        check_sizes(self)
        if (self.pooling == "eos") != (self.eos_id is not None):
            raise UserError(
                f"text_encoder.eos_id = {self.eos_id} with text_encoder.pooling = "
                f"{self.pooling!r}; expected an id with 'eos', and None without."
            )
        super().__post_init__()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        return padded(self.vocab_size, self.vocab_multiple)

    def setup(self):
        """Declares the parts."""
        c = self.transformer
        self.tokens = Embedding(
            self.padded_vocab_size, c.embed_dim, "vocab", c.init_std, c.compute_dtype
        )
        self.inputs = InputEmbedding(c, self.max_length, "learned")
        self.stack = Stack(c)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Vectors of texts.

        Args:
          tokens: ids below vocab_size.
          padding_mask: False for padding, which no token attends to.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give them.

        Returns:
          hidden: [B, T, D] after the final norm; pooled: [B, D], that of the token that
          stands for the text; hidden_states: [layers + 1, B, T, D].
        """
        c, T = self.transformer, tokens.shape[1]
        check_length(self.gin_name, tokens, self.max_length)
        positions = jnp.arange(T)[None]
        at_input = fold_keys(keys, c.num_layers)
        x = self.inputs(self.tokens(tokens), positions, None, at_input)
        causal = self.attention == "causal"
        mask = self_attention(causal, None, padding_mask)
        context = Context(positions, mask, keys=keys)
        out = self.stack(x, context, None, hidden_states)
        place = self._place(tokens, padding_mask)
        pooled = jnp.take_along_axis(out["hidden"], place[:, None, None], axis=1)[:, 0]
        return outputs(out) | {"pooled": pooled}

    def _place(self, tokens: Array, padding_mask: Array | None) -> Int[Array, " B"]:
        """Index of the token whose vector embeds the text."""
        if self.pooling == "eos":
            return (tokens == self.eos_id).argmax(1)
        if self.pooling == "highest_id":
            return tokens.argmax(1)
        places = jnp.arange(tokens.shape[1])
        if self.pooling == "last_token" and padding_mask is not None:
            return jnp.where(padding_mask, places, 0).max(1)
        return jnp.full(len(tokens), len(places) - 1)

    def train_flops_per_text(self, params, length: int) -> float:
        """Matrix FLOPs of a training step for each text of `length` tokens."""
        c = self.transformer
        weights = matmul_parameters(params["stack"], c)
        return length * (6.0 * weights + attention_flops(c, length, self.attention))
