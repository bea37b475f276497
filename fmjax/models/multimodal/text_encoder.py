"""Text encoders that pool a text into one vector, as in CLIP and SigLIP."""

from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import self_attention
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import InputEmbedding, outputs
from fmjax.models.layers.text_inputs import Text, TextArguments, TextInputs
from fmjax.models.layers.text_model import TextModel, embed_text
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig

Pooling = Literal["last_token", "eos", "highest_id", "last_place"]


@configurable("text_encoder")
class TextEncoder(TextModel):
    """A transformer over tokens; one token's output vector embeds the text.

    Attributes:
      transformer: sizes and choices of the stack.
      vocab_size: V. 0, as in configs that do not bind it: that of the data's tokenizer,
        see `fmjax.training.vocab_size`.
      max_length: the longest text; learned positions have as many rows.
      attention: "causal" (CLIP), or "full", where every token attends to every other
        (SigLIP).
      pooling: the token that embeds the text: the "last_token" that is not padding;
        "eos", the first with eos_id; the "highest_id", as end-of-text has in OpenAI's
        CLIP; or the "last_place", padding or not (SigLIP).
      eos_id: the id for pooling "eos"; else None.
      vocab_multiple: the table is padded to a multiple of this, so that it shards.
    """

    transformer: TransformerConfig
    vocab_size: int
    max_length: int
    attention: Literal["causal", "full"] = "causal"
    pooling: Pooling = "last_token"
    eos_id: int | None = None
    vocab_multiple: int = 128

    text_arguments: ClassVar[TextArguments] = {"text": ("padding_mask",)}

    def __post_init__(self):
        super().__post_init__()
        if (self.pooling == "eos") != (self.eos_id is not None):
            raise UserError(
                f"text_encoder.eos_id = {self.eos_id} with text_encoder.pooling = "
                f"{self.pooling!r}; expected an id with 'eos', and None without."
            )

    def setup(self):
        """Declares the submodules."""
        c = self.transformer
        self.tokens = Embedding(
            self.padded_vocab_size, c.embed_dim, "vocab", c.init_std, c.compute_dtype
        )
        self.inputs = InputEmbedding(c, self.max_length, "learned")
        self.stack = Stack(c)

    def __call__(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """Hidden vectors of the tokens, and one vector for each text.

        Args:
          text: tokens [B, T], or a `TextInputs` with a padding_mask.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          hidden: [B, T, D] after the final norm; pooled: [B, D], the vector that embeds
          the text; hidden_states: [layers + 1, B, T, D].
        """
        text = self._read(text)
        x = embed_text(self.tokens, self.inputs, text, keys)
        mask = self_attention(self.attention == "causal", None, text.padding_mask)
        context = Context(text.positions, mask, keys=keys)
        out = self.stack(x, context, None, hidden_states)
        place = self._place(text)
        pooled = jnp.take_along_axis(out["hidden"], place[:, None, None], axis=1)[:, 0]
        return outputs(out) | {"pooled": pooled}

    def _place(self, text: TextInputs) -> Int[Array, " B"]:
        """Index of the token whose vector embeds the text."""
        tokens, padding_mask = text.tokens, text.padding_mask
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
