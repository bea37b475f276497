"""Encoder-decoders: Transformer (Vaswani et al. 2017), T5, BART, Marian, AlexaTM."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import (
    cached_self_attention,
    cross_attention,
    self_attention,
)
from fmjax.models.layers.disentangled import check_decoder
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
from fmjax.models.layers.language_head import LanguageHead, padded
from fmjax.models.layers.transformer import Cache, Context, Stack, empty_cache
from fmjax.models.layers.transformer_config import TransformerConfig


@configurable("seq2seq")
class Seq2Seq(nn.Module):
    """An encoder that reads all of a text, and a decoder that writes another.

    Both share one table of token vectors.

    Attributes:
      encoder: sizes and choices of the encoder.
      decoder: of the decoder; of the same width.
      vocab_size: V; ids at and above it are never predicted.
      max_length: the longest sequence on either side.
      start_id: the decoder's first input, from which the first target is predicted.
      positions: vectors added for each position, see `InputEmbedding`; "none" where
        relative positions tell them (T5).
      position_offset: row of position 0 in the learned tables (BART: 2).
      embed_norm: normalizes the sum of vectors (BART).
      embed_scale: multiplies token vectors by sqrt(D) (Vaswani).
      tie_embeddings: the head is the transposed embedding table.
      head_bias: an offset of the logits (BART, Marian).
      head_scale: multiplies what a head reads by 1 / sqrt(D) (T5 1.0).
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
    embed_norm: bool = False
    embed_scale: bool = False
    tie_embeddings: bool = True
    head_bias: bool = False
    head_scale: bool = False
    embed_init_std: float | None = None
    vocab_multiple: int = 128

    def __post_init__(self):
        check_sizes(self)
        check_positions(self, "encoder", "decoder")
        if not 0 <= self.start_id < self.vocab_size:
            raise UserError(
                f"seq2seq.start_id = {self.start_id}: expected 0 to seq2seq.vocab_size "
                f"- 1 = {self.vocab_size - 1}."
            )
        if self.encoder.embed_dim != self.decoder.embed_dim:
            raise UserError(
                f"seq2seq.encoder: transformer.embed_dim = {self.encoder.embed_dim}; "
                f"seq2seq.decoder: {self.decoder.embed_dim}. They share one table of "
                "vectors, so expected the same."
            )
        check_decoder(self.decoder.position_bias, "seq2seq.decoder")
        super().__post_init__()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        return padded(self.vocab_size, self.vocab_multiple)

    @property
    def transformer(self) -> TransformerConfig:
        """The decoder's stack."""
        return self.decoder

    def setup(self):
        """Declares the parts."""
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
            self.head_bias,
            c.embed_dim**-0.5 if self.head_scale else 1.0,
            None,
            c.init_std,
            self.decoder.compute_dtype,
        )

    def __call__(
        self,
        encoder_tokens: Int[Array, "B S"],
        decoder_tokens: Int[Array, "B T"],
        encoder_padding_mask: Bool[Array, "B S"] | None = None,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        encoder_positions: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_positions: Int[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Logits of the next token that the decoder writes, at every position.

        Args:
          encoder_tokens: ids below vocab_size.
          decoder_tokens: the targets, shifted right behind start_id.
          encoder_padding_mask: False for padding, which no token attends to.
          encoder_segment_ids: of packed rows; tokens on either side attend only to
            their own segment.
          encoder_positions: of each token in its text; 0 … S-1 if not given.
          decoder_segment_ids: of packed rows.
          decoder_positions: of each token in its text; 0 … T-1 if not given.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give them.

        Returns:
          logits: float32 [B, T, V], without vocabulary padding; hidden: [B, T, D], the
          decoder's; encoder_hidden: [B, S, D]; hidden_states: [layers + 1, B, T, D] of
          the decoder, encoder_hidden_states of the encoder.
        """
        out = self.hidden(
            encoder_tokens,
            decoder_tokens,
            encoder_padding_mask,
            encoder_segment_ids,
            encoder_positions,
            decoder_segment_ids,
            decoder_positions,
            keys,
            hidden_states,
        )
        logits = self.head(out["hidden"])[..., : self.vocab_size]
        given = {name: x for name, x in out.items() if name != "encoder_router"}
        return outputs(given) | {"logits": logits}

    def hidden(
        self,
        encoder_tokens: Int[Array, "B S"],
        decoder_tokens: Int[Array, "B T"],
        encoder_padding_mask: Bool[Array, "B S"] | None = None,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        encoder_positions: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_positions: Int[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Everything below the head; see `__call__`."""
        encoded = self.encode(
            encoder_tokens,
            encoder_padding_mask,
            encoder_segment_ids,
            encoder_positions,
            fold_keys(keys, 0),
            hidden_states,
        )
        out = self.decode(
            decoder_tokens,
            encoded["hidden"],
            encoder_padding_mask,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            None,
            fold_keys(keys, 1),
            hidden_states,
        )
        encoded = {f"encoder_{k}": x for k, x in encoded.items() if k != "cache"}
        return out | encoded

    def encode(
        self,
        encoder_tokens: Int[Array, "B S"],
        encoder_padding_mask: Bool[Array, "B S"] | None = None,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        encoder_positions: Int[Array, "B S"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The encoder's "hidden" and "router", see `Stack`."""
        S = encoder_tokens.shape[1]
        check_length("seq2seq", encoder_tokens, self.max_length)
        if encoder_positions is None:
            encoder_positions = jnp.arange(S)[None]
        at_input = fold_keys(keys, self.encoder.num_layers)
        x = self.tokens(encoder_tokens)
        x = self.encoder_inputs(x, encoder_positions, None, at_input)
        mask = self_attention(False, encoder_segment_ids, encoder_padding_mask)
        context = Context(encoder_positions, mask, keys=keys)
        return self.encoder_stack(x, context, None, hidden_states)

    def decode(
        self,
        decoder_tokens: Int[Array, "B T"],
        encoder_hidden: Float[Array, "B S D"] | None,
        encoder_padding_mask: Bool[Array, "B S"] | None = None,
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_positions: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array | Cache | None]:
        """The decoder below its head.

        Args:
          decoder_tokens: ids below vocab_size.
          encoder_hidden: what `encode` gave; None where `cache` has read it.
          encoder_padding_mask: as in `__call__`.
          encoder_segment_ids: likewise.
          decoder_segment_ids: likewise.
          decoder_positions: likewise; with a cache the slots that are written.
          cache: of earlier tokens, from `empty_cache`; it also takes up the encoder's
            output, so that later calls do without.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give them.

        Returns:
          What `Stack` gives.
        """
        T = decoder_tokens.shape[1]
        check_length("seq2seq", decoder_tokens, self.max_length)
        if decoder_positions is None:
            decoder_positions = jnp.arange(T)[None]
        if cache is None:
            mask = self_attention(True, decoder_segment_ids)
        else:
            mask = cached_self_attention(decoder_positions)
        at_input = fold_keys(keys, self.decoder.num_layers)
        x = self.tokens(decoder_tokens)
        x = self.decoder_inputs(x, decoder_positions, None, at_input)
        context = Context(
            decoder_positions,
            mask,
            encoder_hidden=encoder_hidden,
            cross_mask=cross_attention(
                decoder_segment_ids, encoder_segment_ids, encoder_padding_mask
            ),
            keys=keys,
        )
        return self.decoder_stack(x, context, cache, hidden_states)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.language_head(hidden, self.tokens.table)

    def empty_cache(self, batch_size: int, length: int, encoder_length: int) -> Cache:
        """A cache for `length` positions of every row, and an encoder's output."""
        return empty_cache(self.decoder, batch_size, length, encoder_length)

    def train_flops_per_token(self, params, length: int, encoder_length: int) -> float:
        """Matrix FLOPs of a training step for each target.

        Args:
          params: the parameters, or their shapes.
          length: targets of a row.
          encoder_length: tokens that the encoder reads for them.
        """
        E, D = self.encoder, self.decoder
        read = encoder_length / length
        encoder = 6.0 * matmul_parameters(params["encoder_stack"], E)
        encoder += attention_flops(E, encoder_length, "full")
        # The keys and values of cross-attention are made of the encoder's tokens.
        cross = 2 * D.num_layers * D.kv_heads * D.head_width * D.embed_dim
        head = self.padded_vocab_size * D.embed_dim
        decoder = matmul_parameters(params["decoder_stack"], D) - cross + head
        attention = attention_flops(D, length) + attention_flops(
            D, encoder_length, "cross"
        )
        return read * (encoder + 6.0 * cross) + 6.0 * decoder + attention
