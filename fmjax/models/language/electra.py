"""Replaced-token detection (ELECTRA, Clark et al. 2020): two encoders, one table."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.language.bert import Bert, MaskedHead, check_has_no_gate
from fmjax.models.layers.activations import ACTIVATIONS
from fmjax.models.layers.attention_mask import self_attention
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    Positions,
    check_positions,
    outputs,
)
from fmjax.models.layers.text_inputs import Text, TextArguments
from fmjax.models.layers.text_model import TextModel, embed_text
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig


@configurable("electra")
class Electra(TextModel):
    """A discriminator of original and replaced tokens, and a generator of replacements.

    Both encoders read the same vectors of tokens, positions and types, projected where
    a stack has another width.

    Attributes:
      discriminator: sizes and choices of the discriminator's stack, which is kept after
        pretraining.
      generator: those of the generator's stack; None for no generator.
      vocab_size: V. 0, as in configs that do not bind it: that of the data's tokenizer,
        see `fmjax.training.vocab_size`.
      max_length: the longest sequence; learned positions have as many rows.
      positions: vectors added for each position, see `InputEmbedding`.
      num_token_types: number of token types; 0 for none.
      embed_dim: width of the shared vectors; None means the discriminator's.
      vocab_multiple: the table is padded to a multiple of this, so that it shards.
    """

    discriminator: TransformerConfig
    generator: TransformerConfig | None
    vocab_size: int
    max_length: int
    positions: Positions = "learned"
    num_token_types: int = 2
    embed_dim: int | None = None
    vocab_multiple: int = 128

    text_arguments: ClassVar[TextArguments] = Bert.text_arguments

    def __post_init__(self):
        super().__post_init__()
        check_positions(self, "discriminator", "generator")
        check_has_no_gate(self, "discriminator")
        if self.generator is not None:
            check_has_no_gate(self, "generator")

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the discriminator's stack."""
        return self.discriminator

    @property
    def _width(self) -> int:
        return self.embed_dim or self.discriminator.embed_dim

    def setup(self):
        """Declares the submodules."""
        c, width = self.discriminator, self._width
        std, dtype = c.init_std, c.compute_dtype
        self.tokens = Embedding(self.padded_vocab_size, width, "vocab", std, dtype)
        self.inputs = InputEmbedding(
            c,
            self.max_length,
            self.positions,
            num_token_types=self.num_token_types,
            norm=True,
        )
        self.discriminator_stack = Stack(c)
        self.detect = Dense(c.embed_dim, ("embed", None), True, std, dtype)
        self.detect_out = Dense(1, ("embed", None), True, std, dtype)
        if self.generator is not None:
            self.generator_stack = Stack(self.generator)
            self.masked_head = MaskedHead(
                self.generator, self.vocab_size, self.padded_vocab_size, width
            )

    def __call__(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """Logits of whether each token was replaced.

        Args:
          text: tokens [B, T], or a `TextInputs`.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          logits: float32 [B, T], positive for replaced; hidden: [B, T, D], the
          discriminator's; hidden_states: [layers + 1, B, T, D].
        """
        out = self.hidden(text, keys, hidden_states)
        if self.is_initializing() and self.generator is not None:
            self.generator_head(self.generator_hidden(text, keys)["hidden"])
        return outputs(out) | {"logits": self.head(out["hidden"])}

    def hidden(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """The discriminator below its head; see `__call__`."""
        x, context = self._embed(text, keys, "discriminator_stack")
        return self.discriminator_stack(x, context, None, hidden_states)

    def generator_hidden(self, text: Text, keys: Keys = None) -> dict[str, Array]:
        """The generator below its head; arguments as in `__call__`."""
        x, context = self._embed(text, keys, "generator_stack")
        return self.generator_stack(x, context)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """Logits of "replaced", float32."""
        x = ACTIVATIONS[self.discriminator.activation](self.detect(hidden))
        return self.detect_out(x)[..., 0].astype(jnp.float32)

    def generator_head(
        self, hidden: Float[Array, "B T G"]
    ) -> Float[Array, "B T padded_V"]:
        """The generator's logits, float32; vocabulary padding gets -1e30."""
        return self.masked_head(hidden, self.tokens.table)

    def _embed(
        self, text: Text, keys: Keys, stack: str
    ) -> tuple[Float[Array, "B T E"], Context]:
        """The input of the stack of this name."""
        text, prefix = self._read(text), self._prefix(stack)
        self._check_room(text, prefix)
        x = embed_text(self.tokens, self.inputs, text, keys, None, prefix)
        mask = self_attention(False, text.segment_ids, text.padding_mask)
        return x, Context(text.positions, mask, keys=keys)

    def train_flops_per_token(
        self, params, length: int, predicted: float = 1.0
    ) -> float:
        """Matrix FLOPs of a training step for each token.

        Args:
          params: the parameters, or their shapes.
          length: tokens of a sequence.
          predicted: share of the tokens that the generator's head reads.
        """
        weights = matmul_parameters(params, self.discriminator)
        flops = attention_flops(self.discriminator, length, "full")
        if self.generator is not None:
            weights += predicted * params["tokens"]["table"].size
            flops += attention_flops(self.generator, length, "full")
        return 6.0 * weights + flops
