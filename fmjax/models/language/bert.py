"""Encoder-only language models: BERT (Devlin et al. 2019), RoBERTa, DeBERTa."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.activations import ACTIVATIONS
from fmjax.models.layers.attention_mask import self_attention
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, dropout, fold_keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    Positions,
    check_length,
    check_positions,
    check_sizes,
    outputs,
)
from fmjax.models.layers.language_head import LanguageHead, padded
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig


@configurable("bert")
class Bert(nn.Module):
    """A bidirectional encoder with the heads that are asked for.

    Attributes:
      transformer: the stack's sizes and choices.
      vocab_size: V; ids at and above it are never predicted.
      max_length: the longest sequence; learned positions have as many rows.
      positions: vectors added for each position, see `InputEmbedding`.
      position_offset: row of position 0 in the learned table (RoBERTa: 2).
      position_padding_id: positions count other tokens only (RoBERTa: 1); None for all.
      num_token_types: kinds of segments, such as first and second sentence; 0 for none.
      language_head: whether masked tokens are predicted, tied to the embedding table.
      pooler: activation of a layer over the first token, "tanh" in BERT; "none" for no
        such layer. The heads for sentences read it.
      next_sentence: whether to tell if a second sentence followed the first.
      num_classes: of a classifier of the whole text; None for no classifier.
      embed_dim: width of the vectors of tokens, positions and types, projected to the
        transformer's (ELECTRA's generator); None means the same.
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.
    """

    transformer: TransformerConfig
    vocab_size: int
    max_length: int
    positions: Positions = "learned"
    position_offset: int = 0
    position_padding_id: int | None = None
    num_token_types: int = 2
    language_head: bool = True
    pooler: Literal["none", "tanh", "gelu"] = "none"
    next_sentence: bool = False
    num_classes: int | None = None
    embed_dim: int | None = None
    vocab_multiple: int = 128

    def __post_init__(self):
        check_sizes(self)
        check_positions(self, "transformer")
        if self.pooler == "none" and (self.next_sentence or self.num_classes):
            raise UserError(
                "bert.pooler = 'none', which bert.next_sentence and bert.num_classes "
                "need; expected 'tanh' or 'gelu'."
            )
        super().__post_init__()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        return padded(self.vocab_size, self.vocab_multiple)

    def setup(self):
        """Declares the parts."""
        c = self.transformer
        D, std, dtype = c.embed_dim, c.init_std, c.compute_dtype
        rows, width = self.padded_vocab_size, self.embed_dim or D
        self.tokens = Embedding(rows, width, "vocab", std, dtype)
        self.inputs = InputEmbedding(
            c,
            self.max_length,
            self.positions,
            self.position_offset,
            self.num_token_types,
            norm=True,
        )
        self.stack = Stack(c)
        if self.language_head:
            self.masked_head = MaskedHead(c, self.vocab_size, rows, width)
        if self.pooler != "none":
            self.pool = Dense(D, ("embed", None), True, std, dtype)
        if self.next_sentence:
            self.sentence_head = Dense(2, ("embed", None), True, std, dtype)
        if self.num_classes is not None:
            self.classifier = Dense(self.num_classes, ("embed", None), True, std, dtype)

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
        """Outputs of the model's heads.

        Args:
          tokens: ids below vocab_size.
          token_types: of each token; 0 if not given.
          positions: of each token in its document; 0 … T-1 if not given.
          segment_ids: tokens attend only to their own segment.
          padding_mask: False for padding, which no token attends to.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give them.

        Returns:
          hidden: [B, T, D]; logits: float32 [B, T, V] of the token at every position;
          pooled: [B, D]; next_sentence: float32 [B, 2], logits of "follows" and "is
          from elsewhere"; class_logits: float32 [B, num_classes]; each where the model
          has that head. hidden_states: [layers + 1, B, T, D].
        """
        out = self.hidden(
            tokens,
            token_types,
            positions,
            segment_ids,
            padding_mask,
            keys,
            hidden_states,
        )
        given = outputs(out)
        if self.language_head:
            given["logits"] = self.head(out["hidden"])[..., : self.vocab_size]
        return given

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
        """Everything but the language head; see `__call__`."""
        c = self.transformer
        check_length("bert", tokens, self.max_length)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
            if self.position_padding_id is not None:
                counted = tokens != self.position_padding_id
                positions = counted.cumsum(1) * counted - 1
        x = self.tokens(tokens)
        x = self.inputs(x, positions, token_types, fold_keys(keys, c.num_layers))
        mask = self_attention(False, segment_ids, padding_mask)
        context = Context(positions, mask, keys=keys)
        out = self.stack(x, context, None, hidden_states)
        return out | self._about_the_text(out["hidden"][:, 0], keys)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.masked_head(hidden, self.tokens.table)

    def _about_the_text(self, first: Float[Array, "B D"], keys: Keys) -> dict:
        if self.pooler == "none":
            return {}
        pooled = ACTIVATIONS[self.pooler](self.pool(first))
        out = {"pooled": pooled}
        if self.next_sentence:
            out["next_sentence"] = self.sentence_head(pooled).astype(jnp.float32)
        if self.num_classes is not None:
            at_classifier = fold_keys(keys, self.transformer.num_layers + 1)
            pooled = dropout(pooled, self.transformer.dropout, at_classifier)
            out["class_logits"] = self.classifier(pooled).astype(jnp.float32)
        return out

    def train_flops_per_token(
        self, params, length: int, predicted: float = 1.0
    ) -> float:
        """Matrix FLOPs of a training step for each token; the head reads a share."""
        weights = matmul_parameters(params, self.transformer)
        if self.language_head:
            weights += predicted * params["tokens"]["table"].size
        return 6.0 * weights + attention_flops(self.transformer, length, "full")


class MaskedHead(nn.Module):
    """BERT's head: a layer with activation and norm, then the tied table and an offset.

    Attributes:
      config: of the transformer below.
      vocab_size: V.
      padded_size: rows of the table.
      width: of a row.
    """

    config: TransformerConfig
    vocab_size: int
    padded_size: int
    width: int

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], table: Float[Array, "padded_V E"]
    ) -> Float[Array, "B T padded_V"]:
        """Logits, those of vocabulary padding -1e30."""
        c = self.config
        dtype = c.compute_dtype
        transform = Dense(
            self.width, ("embed", None), True, c.init_std, dtype, name="transform"
        )
        x = ACTIVATIONS[c.activation](transform(hidden))
        x = Norm("layernorm", c.norm_epsilon, True, name="norm")(x)
        return LanguageHead(
            self.vocab_size,
            self.padded_size,
            tied=True,
            bias=True,
            scale=1.0,
            softcap=None,
            init_std=c.init_std,
            dtype=dtype,
            name="vocabulary",
        )(x, table)
