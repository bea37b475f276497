"""Decoder-only language models: GPT-2 (Radford et al. 2019) to Mixtral (Jiang 2024)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import cached_self_attention, self_attention
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


@configurable("gpt")
class GPT(nn.Module):
    """A causal language model.

    Attributes:
      transformer: the stack's sizes and choices.
      vocab_size: V; ids at and above it are never predicted.
      max_length: the longest sequence; learned positions have as many rows.
      positions: vectors added for each position: "learned" (GPT-2), "sinusoidal", or
        "none" where transformer.rotary or position_bias tells them.
      position_offset: row of position 0 in the learned table (OPT: 2).
      positions_from_padding_mask: given a padding mask, positions count the tokens that
        are no padding (OPT).
      embed_norm: normalizes token vectors (BLOOM).
      embed_scale: multiplies them by sqrt(D) (Gemma).
      tie_embeddings: the head is the transposed embedding table (Press & Wolf 2017).
      logits_softcap: logits x become cap · tanh(x / cap) (Gemma 2); None leaves them.
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.
    """

    transformer: TransformerConfig
    vocab_size: int
    max_length: int
    positions: Positions = "learned"
    position_offset: int = 0
    positions_from_padding_mask: bool = False
    embed_norm: bool = False
    embed_scale: bool = False
    tie_embeddings: bool = True
    logits_softcap: float | None = None
    vocab_multiple: int = 128

    def __post_init__(self):
        check_sizes(self)
        check_positions(self, "transformer")
        check_decoder(self.transformer.position_bias, "gpt.transformer")
        super().__post_init__()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        return padded(self.vocab_size, self.vocab_multiple)

    def setup(self):
        """Declares the parts."""
        c = self.transformer
        rows, dtype = self.padded_vocab_size, c.compute_dtype
        self.tokens = Embedding(rows, c.embed_dim, "vocab", c.init_std, dtype)
        self.inputs = InputEmbedding(
            c,
            self.max_length,
            self.positions,
            self.position_offset,
            norm=self.embed_norm,
            scale=self.embed_scale,
        )
        self.stack = Stack(c)
        self.language_head = LanguageHead(
            self.vocab_size,
            rows,
            self.tie_embeddings,
            False,
            1.0,
            self.logits_softcap,
            c.init_std,
            dtype,
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Logits of the next token at every position.

        Args:
          tokens: ids below vocab_size.
          positions: of each token in its document; 0 … T-1 if not given.
          segment_ids: tokens attend only to their own segment.
          padding_mask: False for padding, which no token attends to.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give them.

        Returns:
          logits: float32 [B, T, V], without vocabulary padding; hidden: [B, T, D],
          after the final norm; hidden_states: [layers + 1, B, T, D], the stack's input
          and every block's output, the last one after the final norm.
        """
        out = self.hidden(
            tokens, positions, segment_ids, padding_mask, None, keys, hidden_states
        )
        logits = self.head(out["hidden"])[..., : self.vocab_size]
        return outputs(out) | {"logits": logits}

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        padding_mask: Bool[Array, "B T"] | None = None,
        cache: Cache | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array | Cache | None]:
        """Everything below the head; see `__call__`.

        Returns:
          hidden: [B, T, D], after the final norm; cache: the given cache with these
          tokens written at their positions, or None; router: of a mixture of experts,
          [layers, B] each, else empty; hidden_states where asked for.
        """
        T = tokens.shape[1]
        check_length("gpt", tokens, self.max_length)
        if positions is None:
            positions = jnp.arange(T)[None]
            if self.positions_from_padding_mask and padding_mask is not None:
                positions = padding_mask.cumsum(1) * padding_mask - 1
        if cache is None:
            mask = self_attention(True, segment_ids, padding_mask)
        else:
            mask = cached_self_attention(positions)
        # Blocks fold their index, 0 and up; the input takes the next one.
        at_input = fold_keys(keys, self.transformer.num_layers)
        x = self.inputs(self.tokens(tokens), positions, None, at_input)
        context = Context(positions, mask, keys=keys)
        return self.stack(x, context, cache, hidden_states)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.language_head(hidden, self.tokens.table)

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """A cache for `length` positions of every row."""
        return empty_cache(self.transformer, batch_size, length)

    def train_flops_per_token(self, params, length: int) -> float:
        """Matrix FLOPs of a training step for each token (PaLM, appendix B).

        6 for every weight that multiplies (tables that are only looked up don't), and
        attention's products, causal or not.

        Args:
          params: the parameters, or their shapes.
          length: tokens of a sequence.
        """
        weights = matmul_parameters(params, self.transformer)
        if self.tie_embeddings:
            weights += params["tokens"]["table"].size
        return 6.0 * weights + attention_flops(self.transformer, length)
