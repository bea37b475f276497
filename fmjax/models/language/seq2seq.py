"""Encoder-decoders: Transformer (Vaswani et al. 2017), T5, BART, Marian, AlexaTM."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import (
    cross_attention,
    padding_mask_of,
    self_attention,
)
from fmjax.models.layers.disentangled import check_decoder
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    Positions,
    check_positions,
    outputs,
)
from fmjax.models.layers.language_head import LanguageHead
from fmjax.models.layers.text_inputs import (
    Text,
    TextArguments,
    TextInputs,
    count_positions,
)
from fmjax.models.layers.text_model import (
    TextModel,
    check_same_width,
    check_start_id,
    decoder_mask,
    embed_text,
)
from fmjax.models.layers.token_heads import TextClassifier, TokenHeads, last_vectors
from fmjax.models.layers.transformer import Cache, Context, Stack, empty_cache
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.layers.virtual_tokens import behind_prompt, without_prompt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """What cross-attention reads of an encoder's text.

    Attributes:
      hidden: [B, S, D], the encoder's "hidden"; None where the keys and values made of
        it are in the decoder's cache.
      segment_ids: int32 [B, S], of the encoder's text; None where it has none.
      padding_mask: bool [B, S], likewise.
      prompt: number of virtual tokens before the text; S includes them. Static.
    """

    hidden: Float[Array, "B S D"] | None
    segment_ids: Int[Array, "B S"] | None = None
    padding_mask: Bool[Array, "B S"] | None = None
    prompt: int = dataclasses.field(default=0, metadata={"static": True})


@configurable("seq2seq")
class Seq2Seq(TextModel):
    """An encoder of one text, and a decoder that predicts another text from it.

    Both share one table of token vectors.

    Attributes:
      encoder: sizes and choices of the encoder's stack.
      decoder: those of the decoder's stack, of the same width.
      vocab_size: V; ids at and above it are never predicted. 0, as in configs that do
        not bind it: that of the data's tokenizer, see `fmjax.training.vocab_size`.
      max_length: the longest sequence on either side.
      start_id: the decoder's first input token; the first target is predicted from it.
      positions: vectors added for each position, see `InputEmbedding`; "none" with a
        relative position bias (T5).
      position_offset: row of position 0 in the learned tables (BART: 2); see
        `InputEmbedding`.
      position_padding_id: positions do not count tokens of this id (M2M-100: 1); None
        to count all.
      embed_norm: whether the sum of token and position vectors is normalized (BART).
      embed_scale: whether token vectors are multiplied by sqrt(D) (Vaswani).
      tie_embeddings: the head is the transposed embedding table.
      head_bias: whether the logits have a bias (BART, Marian).
      head_scale: whether the head's input is multiplied by 1 / sqrt(D) (T5 1.0).
      num_classes: classes of a classifier that reads the decoder's last token, 1 for a
        score; None for no classifier. Both sides then have the same text.
      spans: whether there is a head for the first and last token of an answer, over the
        decoder's vectors. Both sides then have the same text.
      embed_init_std: standard deviation of token vectors; None means the encoder's.
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.
    """

    encoder: TransformerConfig
    decoder: TransformerConfig
    vocab_size: int
    max_length: int
    start_id: int = 0
    positions: Positions = "none"
    position_offset: int = 0
    position_padding_id: int | None = None
    embed_norm: bool = False
    embed_scale: bool = False
    tie_embeddings: bool = True
    head_bias: bool = False
    head_scale: bool = False
    num_classes: int | None = None
    spans: bool = False
    embed_init_std: float | None = None
    vocab_multiple: int = 128

    text_arguments: ClassVar[TextArguments] = {
        "encoder_text": ("padding_mask", "segment_ids", "positions"),
        "decoder_text": ("segment_ids", "positions"),
    }

    def __post_init__(self):
        super().__post_init__()
        check_positions(self, "encoder", "decoder")
        check_start_id(self)
        check_same_width(self, "encoder", "decoder")
        check_decoder(self.decoder.position_bias, "seq2seq.decoder")

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the decoder's stack."""
        return self.decoder

    def setup(self):
        """Declares the submodules."""
        c, rows = self.encoder, self.padded_vocab_size
        std = c.init_std if self.embed_init_std is None else self.embed_init_std
        self.tokens = Embedding(rows, c.embed_dim, "vocab", std, c.compute_dtype)
        self.encoder_inputs, self.decoder_inputs = (
            InputEmbedding(
                side,
                self.max_length,
                self.positions,
                self.position_offset,
                norm=self.embed_norm,
                scale=self.embed_scale,
            )
            for side in (self.encoder, self.decoder)
        )
        self.encoder_stack = Stack(self.encoder)
        self.decoder_stack = Stack(self.decoder, cross=True)
        self.language_head = LanguageHead(
            self.vocab_size,
            rows,
            self.tie_embeddings,
            c.init_std,
            self.decoder.compute_dtype,
            bias=self.head_bias,
            scale=(c.embed_dim**-0.5 if self.head_scale else 1.0)
            * c.multipliers.logits,
        )
        if self.num_classes is not None:
            self.class_head = TextClassifier(self.decoder, self.num_classes)
        if self.spans:
            self.token_heads = TokenHeads(self.decoder, None, True)

    def __call__(
        self,
        encoder_text: Text,
        decoder_text: Text,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Logits of the decoder's next token at every position.

        Args:
          encoder_text: tokens [B, S], or a `TextInputs`.
          decoder_text: the targets shifted right behind start_id, [B, T]; tokens of
            segment i attend to segment i of the encoder's text.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          logits: float32 [B, T, V], without vocabulary padding; hidden: [B, T, D], the
          decoder's; encoder_hidden: [B, S, D]; hidden_states: [layers + 1, B, T, D] of
          the decoder, encoder_hidden_states of the encoder; class_logits: float32 [B,
          num_classes], and span_logits: float32 [B, T, 2], see `TokenHeads`, each if
          the model has that head.
        """
        out = self.hidden(encoder_text, decoder_text, keys, hidden_states)
        logits = self.head(out["hidden"])[..., : self.vocab_size]
        given = {name: x for name, x in out.items() if name != "encoder_router"}
        return outputs(given) | {"logits": logits}

    def hidden(
        self,
        encoder_text: Text,
        decoder_text: Text,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Everything below the head; see `__call__`."""
        encoder_text = self._read(encoder_text, "encoder_text")
        encoded = self.encode(encoder_text, fold_keys(keys, 0), hidden_states)
        count = encoded["hidden"].shape[1] - encoder_text.tokens.shape[1]
        whole = behind_prompt(encoder_text, count)
        read = EncoderOutput(
            encoded["hidden"], whole.segment_ids, whole.padding_mask, count
        )
        out = self.decode(decoder_text, read, None, fold_keys(keys, 1), hidden_states)
        encoded = without_prompt(encoded, count)
        encoded = {f"encoder_{k}": x for k, x in encoded.items() if k != "cache"}
        if self.num_classes is not None:
            segment_ids = TextInputs.of(decoder_text).segment_ids
            last = last_vectors(out["hidden"], padding_mask_of(segment_ids, None))
            out["class_logits"] = self.class_head(last, fold_keys(keys, 1))
        if self.spans:
            out |= self.token_heads(out["hidden"], fold_keys(keys, 1))
        return out | encoded

    def encode(
        self, encoder_text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """The encoder's "hidden" and "router", see `Stack`.

        The decoder reads the vectors of a prompt's virtual tokens too, so they are in
        "hidden" before those of the text.
        """
        text, prompt = self._read(encoder_text, "encoder_text"), self.tokens.prompt()
        count = 0 if prompt is None else len(prompt)
        prefix = self._prefix("encoder_stack")
        self._check_room(text, count + prefix)
        whole = behind_prompt(text, count)
        x = embed_text(self.tokens, self.encoder_inputs, whole, keys, prompt, prefix)
        mask = self_attention(False, whole.segment_ids, whole.padding_mask, count)
        context = Context(whole.positions, mask, keys=keys)
        return self.encoder_stack(x, context, None, hidden_states)

    def decode(
        self,
        decoder_text: Text,
        encoded: EncoderOutput,
        cache: Cache | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array | Cache | None]:
        """The decoder below its head.

        Args:
          decoder_text: tokens [B, T], or a `TextInputs`; with a cache its positions are
            the slots that are written.
          encoded: of the encoder's text.
          cache: of earlier tokens, from `empty_cache`; it also keeps the keys and
            values of `encoded.hidden`, which later calls leave out.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          What `Stack` gives.
        """
        text = self._read(decoder_text, "decoder_text")
        prefix = self._prefix("decoder_stack")
        self._check_room(text, prefix)
        x = embed_text(self.tokens, self.decoder_inputs, text, keys, None, prefix)
        context = Context(
            text.positions,
            decoder_mask(text, cache),
            encoder_hidden=encoded.hidden,
            cross_mask=cross_attention(
                *(text.segment_ids, encoded.segment_ids, encoded.padding_mask),
                encoded.prompt,
            ),
            keys=keys,
        )
        return self.decoder_stack(x, context, cache, hidden_states)

    def _default_positions(self, text: TextInputs) -> Int[Array, "#B T"]:
        if self.position_padding_id is None:
            return super()._default_positions(text)
        return count_positions(text.tokens != self.position_padding_id)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.language_head(hidden, self.tokens.table)

    def empty_cache(self, batch_size: int, length: int, encoder_length: int) -> Cache:
        """A cache for `length` positions of every row, and an encoder's output."""
        return empty_cache(self.decoder, batch_size, length, encoder_length)

    def train_flops_per_token(
        self, params, length: int, encoder_length: int, predicted: float = 1.0
    ) -> float:
        """Matrix FLOPs of a training step for each target.

        Args:
          params: the parameters, or their shapes.
          length: targets of a row.
          encoder_length: tokens of a row of the encoder.
          predicted: share of the targets that the language head reads.
        """
        E, D = self.encoder, self.decoder
        read = encoder_length / length
        encoder = 6.0 * matmul_parameters(params["encoder_stack"], E)
        encoder += attention_flops(E, encoder_length, "full")
        # Cross-attention computes keys and values once for each token of the encoder.
        cross = 2 * D.num_layers * D.kv_heads * D.head_width * D.embed_dim
        head = predicted * self.padded_vocab_size * D.embed_dim
        decoder = matmul_parameters(params["decoder_stack"], D) - cross + head
        attention = attention_flops(D, length) + attention_flops(
            D, encoder_length, "cross"
        )
        return read * (encoder + 6.0 * cross) + 6.0 * decoder + attention
