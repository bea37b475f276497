"""Encoder-only language models: BERT (Devlin et al. 2019), ModernBERT, T5's encoder."""

from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.activations import ACTIVATIONS
from fmjax.models.layers.attention_mask import padding_mask_of, self_attention
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, dropout, fold_keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    Positions,
    check_positions,
    outputs,
)
from fmjax.models.layers.language_head import LanguageHead
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.text_inputs import (
    Text,
    TextArguments,
    TextInputs,
    count_positions,
)
from fmjax.models.layers.text_model import TextModel, embed_text
from fmjax.models.layers.token_heads import TokenHeads
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.layers.virtual_tokens import behind_prompt, without_prompt


@configurable("bert")
class Bert(TextModel):
    """A bidirectional encoder with optional heads.

    Attributes:
      transformer: sizes and choices of the stack.
      vocab_size: V; ids at and above it are never predicted. 0, as in configs that do
        not bind it: that of the data's tokenizer, see `fmjax.training.vocab_size`.
      max_length: the longest sequence; learned positions have as many rows.
      positions: vectors added for each position, see `InputEmbedding`.
      position_offset: row of position 0 in the learned table (RoBERTa: 2).
      position_padding_id: positions do not count tokens of this id (RoBERTa: 1); None
        to count all.
      num_token_types: number of token types (first and second sentence: 2); 0 for none.
      embed_norm: whether the sum of the vectors of tokens, positions and types is
        normalized (T5's encoder: not).
      language_head: whether there is a head that predicts masked tokens, tied to the
        embedding table.
      pooler: activation of a dense layer over the first token, "tanh" in BERT; "none"
        for no such layer. The heads for sentences read its output.
      pooling: what the pooler reads: the vector of the "first" token, or the "mean" of
        those that are not padding (ModernBERT), zeros where there are none.
      pooler_norm: whether a norm follows the pooler's activation (ModernBERT).
      head_bias: whether the dense layers and norms of the heads have biases, beside
        those of the logits (ModernBERT: not).
      next_sentence: whether there is a head that classifies if a second sentence
        followed the first.
      num_classes: classes of a classifier of the whole text, 1 for a score; None for no
        classifier.
      token_classes: labels of a classifier of every token; None for no classifier.
      spans: whether there is a head for the first and last token of an answer.
      token_transform: activation of a dense layer and a norm before the heads for
        tokens and answers, "gelu" in ModernBERT; "none" for no such layer.
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
    embed_norm: bool = True
    language_head: bool = True
    pooler: Literal["none", "tanh", "gelu", "relu"] = "none"
    pooling: Literal["first", "mean"] = "first"
    pooler_norm: bool = False
    head_bias: bool = True
    next_sentence: bool = False
    num_classes: int | None = None
    token_classes: int | None = None
    spans: bool = False
    token_transform: Literal["none", "tanh", "gelu", "relu"] = "none"
    embed_dim: int | None = None
    vocab_multiple: int = 128

    text_arguments: ClassVar[TextArguments] = {
        "text": ("token_types", "positions", "segment_ids", "padding_mask")
    }

    def __post_init__(self):
        super().__post_init__()
        check_positions(self, "transformer")
        if self.language_head:
            check_has_no_gate(self, "transformer")
        require(
            self,
            "pooler_norm",
            self.pooler != "none" or not self.pooler_norm,
            "False with bert.pooler = 'none'",
        )
        require(
            self,
            "pooling",
            self.pooler != "none" or self.pooling == "first",
            "'first' with bert.pooler = 'none'",
        )
        require(
            self,
            "token_transform",
            self._has_token_heads or self.token_transform == "none",
            "'none' with neither bert.token_classes nor bert.spans",
        )
        if self.pooler == "none" and (self.next_sentence or self.num_classes):
            raise UserError(
                "bert.pooler = 'none', which bert.next_sentence and bert.num_classes "
                "need; expected 'tanh', 'gelu' or 'relu'."
            )

    @property
    def _has_token_heads(self) -> bool:
        return self.token_classes is not None or self.spans

    def setup(self):
        """Declares the submodules."""
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
            norm=self.embed_norm,
        )
        self.stack = Stack(c)
        if self.language_head:
            self.masked_head = MaskedHead(
                c, self.vocab_size, rows, width, self.head_bias
            )
        if self.pooler != "none":
            self.pool = Dense(D, ("embed", None), self.head_bias, std, dtype)
        if self.pooler_norm:
            self.pool_norm = Norm("layernorm", c.norm_epsilon, self.head_bias)
        if self.next_sentence:
            self.sentence_head = Dense(2, ("embed", None), True, std, dtype)
        if self.num_classes is not None:
            self.classifier = Dense(self.num_classes, ("embed", None), True, std, dtype)
        if self._has_token_heads:
            self.token_heads = TokenHeads(
                c,
                self.token_classes,
                self.spans,
                self.token_transform,
                self.head_bias,
            )

    def __call__(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """The encoder's hidden vectors and the outputs of the heads.

        Args:
          text: tokens [B, T], or a `TextInputs`.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          hidden: [B, T, D]; logits: float32 [B, T, V] of the token at every position;
          pooled: [B, D]; next_sentence: float32 [B, 2], logits of "follows" and "is
          from elsewhere"; class_logits: float32 [B, num_classes]; token_logits and
          span_logits, see `TokenHeads`; each where the model has that head.
          hidden_states: [layers + 1, B, T, D].
        """
        out = self.hidden(text, keys, hidden_states)
        given = outputs(out)
        if self.language_head:
            given["logits"] = self.head(out["hidden"])[..., : self.vocab_size]
        return given

    def hidden(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """Everything but the language head; see `__call__`."""
        text, prompt = self._read(text), self.tokens.prompt()
        count, prefix = 0 if prompt is None else len(prompt), self._prefix("stack")
        self._check_room(text, count + prefix)
        whole = behind_prompt(text, count)
        x = embed_text(self.tokens, self.inputs, whole, keys, prompt, prefix)
        mask = self_attention(False, whole.segment_ids, whole.padding_mask, count)
        context = Context(whole.positions, mask, keys=keys)
        out = without_prompt(self.stack(x, context, None, hidden_states), count)
        out |= self._sentence_heads(self._read_by_pooler(out, text), keys)
        if self._has_token_heads:
            out |= self.token_heads(out["hidden"], keys)
        return out

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.masked_head(hidden, self.tokens.table)

    def _default_positions(self, text: TextInputs) -> Int[Array, "#B T"]:
        if self.position_padding_id is None:
            return super()._default_positions(text)
        return count_positions(text.tokens != self.position_padding_id)

    def _read_by_pooler(self, out: dict, text: TextInputs) -> Float[Array, "B D"]:
        hidden = out["hidden"]
        if self.pooling == "first":
            return hidden[:, 0]
        mask = padding_mask_of(text.segment_ids, text.padding_mask)
        if mask is None:
            return hidden.mean(1)
        total = hidden.sum(1, where=mask[..., None], dtype=jnp.float32)
        count = jnp.maximum(mask.sum(1, keepdims=True), 1)
        return (total / count).astype(hidden.dtype)

    def _sentence_heads(self, first: Float[Array, "B D"], keys: Keys) -> dict:
        if self.pooler == "none":
            return {}
        pooled = ACTIVATIONS[self.pooler](self.pool(first))
        if self.pooler_norm:
            pooled = self.pool_norm(pooled)
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
        """Matrix FLOPs of a training step for each token.

        Args:
          params: the parameters, or their shapes.
          length: tokens of a sequence.
          predicted: share of the tokens that the language head reads.
        """
        weights = matmul_parameters(params, self.transformer)
        if self.language_head:
            weights += predicted * params["tokens"]["table"].size
        return 6.0 * weights + attention_flops(self.transformer, length, "full")


def check_has_no_gate(model: TextModel, stack: str) -> None:
    """Raises UserError for an activation that a head over a stack cannot have.

    Args:
      model: that has the stack, and a head with its activation.
      stack: its field that holds a `TransformerConfig`.
    """
    activation = getattr(model, stack).activation
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{model.gin_name}.{stack}: transformer.activation = {activation!r} is "
            "gated, and the head over this stack has no gate; expected one of "
            f"{', '.join(name for name in ACTIVATIONS if name != 'tanh')}."
        )


class MaskedHead(nn.Module):
    """BERT's head: a dense layer, activation and norm, then the tied table and a bias.

    Attributes:
      config: of the transformer below the head.
      vocab_size: V.
      padded_size: rows of the embedding table.
      width: E, width of a row of it.
      bias: whether the dense layer and the norm have biases.
    """

    config: TransformerConfig
    vocab_size: int
    padded_size: int
    width: int
    bias: bool = True

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B T D"], table: Float[Array, "padded_V E"]
    ) -> Float[Array, "B T padded_V"]:
        """Logits, float32; those of vocabulary padding are -1e30."""
        c = self.config
        dtype = c.compute_dtype
        transform = Dense(
            self.width, ("embed", None), self.bias, c.init_std, dtype, name="transform"
        )
        x = ACTIVATIONS[c.activation](transform(hidden))
        x = Norm("layernorm", c.norm_epsilon, self.bias, name="norm")(x)
        return LanguageHead(
            self.vocab_size,
            self.padded_size,
            tied=True,
            init_std=c.init_std,
            dtype=dtype,
            bias=True,
            scale=c.multipliers.logits,
            name="vocabulary",
        )(x, table)
