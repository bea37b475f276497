"""Decoder-only language models: GPT-2 (Radford et al. 2019) to Llama (Touvron 2023)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.attention import KeyValueCache
from fmjax.models.layers import (
    Embedding,
    Keys,
    constrain,
    dropout,
    fold_keys,
    matmul,
    normal_init,
)
from fmjax.models.transformer import Stack, TransformerConfig


@configurable("gpt")
class GPT(nn.Module):
    """A causal language model.

    Attributes:
      transformer: the stack's sizes and choices.
      vocab_size: V; ids at and above it are never predicted.
      max_length: the longest sequence; learned positions have as many rows.
      learned_positions: adds a learned vector for each position (GPT-2); without it,
        positions come from transformer.rope_theta.
      tie_embeddings: the head is the transposed embedding table (Press & Wolf 2017).
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.
    """

    transformer: TransformerConfig
    vocab_size: int
    max_length: int
    learned_positions: bool = True
    tie_embeddings: bool = True
    vocab_multiple: int = 128

    def __post_init__(self):
        for name in ("vocab_size", "max_length", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise UserError(f"gpt.{name} = {getattr(self, name)} is below 1.")
        if not self.learned_positions and self.transformer.rope_theta is None:
            raise UserError(
                "gpt.learned_positions = False and transformer.rope_theta = None leave "
                "the model without positions; set one of them."
            )
        super().__post_init__()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def setup(self):
        """Declares the parts."""
        c = self.transformer
        rows, width, std = self.padded_vocab_size, c.embed_dim, c.init_std
        dtype = c.compute_dtype
        self.tokens = Embedding(rows, width, "vocab", std, dtype)
        if self.learned_positions:
            self.positions = Embedding(self.max_length, width, "position", std, dtype)
        self.stack = Stack(c)
        self.final_norm = c.make_norm(None)
        if not self.tie_embeddings:
            init = normal_init(std, "embed", "vocab")
            self.head_kernel = self.param("head", init, (width, rows))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
    ) -> dict[str, Array]:
        """Logits of the next token at every position.

        Args:
          tokens: ids below vocab_size.
          positions: of each token in its document; 0 … T-1 if not given.
          segment_ids: tokens attend only to their own segment.
          mask: False for padding, which no other token attends to.
          keys: one key per example for dropout; None in evaluation.

        Returns:
          logits: float32 [B, T, V], without vocabulary padding; hidden: [B, T, D],
          after the final norm.
        """
        out = self.hidden(tokens, positions, segment_ids, mask, keys=keys)
        logits = self.head(out["hidden"])[..., : self.vocab_size]
        return {"logits": logits, "hidden": out["hidden"]}

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
        cache: KeyValueCache | None = None,
        keys: Keys = None,
    ) -> dict[str, Array | KeyValueCache | None]:
        """Everything below the head; see `__call__`.

        Returns:
          hidden: [B, T, D], after the final norm; cache: the given cache with these
          tokens written at their positions, or None.
        """
        B, T = tokens.shape
        if T > self.max_length:
            raise UserError(
                f"sequence of {T} tokens, gpt.max_length = {self.max_length}."
            )
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        causal = jnp.tril(jnp.ones((T, T), bool))
        attend_to = None
        if cache is not None:
            slots = jnp.arange(cache.k.shape[-3])
            attend_to = slots <= positions[..., None]
        elif segment_ids is not None or mask is not None:
            if segment_ids is None:
                segment_ids = mask
            elif mask is not None:
                segment_ids = jnp.where(mask, segment_ids, -1)
            attend_to = (segment_ids[:, :, None] == segment_ids[:, None, :]) & causal
        x = self.tokens(tokens)
        if self.learned_positions:
            x = x + self.positions(positions)
        x = constrain(x, "batch", "length", "act_embed")
        # Blocks fold their index, 0 and up; the embeddings take the next one.
        at_embedding = fold_keys(keys, self.transformer.num_layers)
        x = dropout(x, self.transformer.dropout, at_embedding)
        x, cache = self.stack(x, positions, attend_to, cache, keys)
        return {"hidden": self.final_norm(x), "cache": cache}

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        if self.tie_embeddings:
            logits = self.tokens.attend(hidden)
        else:
            dtype = self.transformer.compute_dtype
            kernel = self.head_kernel.astype(dtype)
            logits = matmul(hidden.astype(dtype), kernel, jnp.float32)
        logits = constrain(logits, "batch", "length", "act_vocab")
        if self.padded_vocab_size == self.vocab_size:
            return logits
        real = jnp.arange(self.padded_vocab_size) < self.vocab_size
        return jnp.where(real, logits, -1e30)

    def empty_cache(self, batch_size: int, length: int) -> KeyValueCache:
        """A cache for `length` positions of every row."""
        c = self.transformer
        shape = (c.num_layers, batch_size, length, c.kv_heads, c.head_width)
        return KeyValueCache(
            jnp.zeros(shape, c.compute_dtype), jnp.zeros(shape, c.compute_dtype)
        )

    def train_flops_per_token(self, params, length: int) -> float:
        """Matrix FLOPs of a training step for each token (PaLM, appendix B).

        6 for every weight that multiplies (tables that are only looked up don't), and
        12 · layers · H · K · length for attention, causal or not.

        Args:
          params: the parameters, or their shapes.
          length: tokens of a sequence.
        """
        c = self.transformer
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        if self.learned_positions:
            weights -= self.max_length * c.embed_dim
        if not self.tie_embeddings:
            weights -= self.padded_vocab_size * c.embed_dim
        return 6.0 * weights + 12.0 * c.num_layers * c.num_heads * c.head_width * length
