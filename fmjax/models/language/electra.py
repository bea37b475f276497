"""Replaced-token detection (ELECTRA, Clark et al. 2020): two encoders, one table."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.language.bert import MaskedHead
from fmjax.models.layers.activations import ACTIVATIONS
from fmjax.models.layers.attention_mask import self_attention
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    Positions,
    check_length,
    check_positions,
    check_sizes,
    outputs,
)
from fmjax.models.layers.language_head import padded
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig


@configurable("electra")
class Electra(nn.Module):
    """A discriminator of real and replaced tokens, and the generator that replaces.

    Both read the same vectors of tokens, positions and types, projected where their
    width differs from them.

    Attributes:
      discriminator: sizes and choices of the encoder that is kept.
      generator: of the smaller one that corrupts; None leaves it out.
      vocab_size: V.
      max_length: the longest sequence; learned positions have as many rows.
      positions: vectors added for each position, see `InputEmbedding`.
      num_token_types: kinds of segments; 0 for none.
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

    def __post_init__(self):
        check_sizes(self)
        check_positions(self, "discriminator", "generator")
        super().__post_init__()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        return padded(self.vocab_size, self.vocab_multiple)

    @property
    def transformer(self) -> TransformerConfig:
        """The stack that is kept."""
        return self.discriminator

    @property
    def _width(self) -> int:
        return self.embed_dim or self.discriminator.embed_dim

    def setup(self):
        """Declares the parts."""
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
        self,
        tokens: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Whether each token was replaced.

        Args:
          tokens: ids below vocab_size.
          token_types: of each token; 0 if not given.
          positions: of each token in its document; 0 … T-1 if not given.
          segment_ids: tokens attend only to their own segment.
          padding_mask: False for padding, which no token attends to.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give them.

        Returns:
          logits: float32 [B, T], positive for replaced; hidden: [B, T, D], the
          discriminator's; hidden_states: [layers + 1, B, T, D].
        """
        inputs = (tokens, token_types, positions, segment_ids, padding_mask, keys)
        out = self.hidden(*inputs, hidden_states)
        if self.is_initializing() and self.generator is not None:
            self.generator_head(self.generator_hidden(*inputs)["hidden"])
        return outputs(out) | {"logits": self.head(out["hidden"])}

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The discriminator below its head; see `__call__`."""
        x, context = self._read(
            tokens, token_types, positions, segment_ids, padding_mask, keys
        )
        return self.discriminator_stack(x, context, None, hidden_states)

    def generator_hidden(
        self,
        tokens: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
    ) -> dict[str, Array]:
        """The generator below its head; arguments as in `__call__`."""
        x, context = self._read(
            tokens, token_types, positions, segment_ids, padding_mask, keys
        )
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

    def _read(self, tokens, token_types, positions, segment_ids, padding_mask, keys):
        check_length("electra", tokens, self.max_length)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        at_input = fold_keys(keys, self.discriminator.num_layers)
        x = self.inputs(self.tokens(tokens), positions, token_types, at_input)
        mask = self_attention(False, segment_ids, padding_mask)
        return x, Context(positions, mask, keys=keys)

    def train_flops_per_token(
        self, params, length: int, predicted: float = 1.0
    ) -> float:
        """Matrix FLOPs of a training step for each token; one head reads a share."""
        weights = matmul_parameters(params, self.discriminator)
        flops = attention_flops(self.discriminator, length, "full")
        if self.generator is not None:
            weights += predicted * params["tokens"]["table"].size
            flops += attention_flops(self.generator, length, "full")
        return 6.0 * weights + flops
