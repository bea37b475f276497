"""A text decoder: its first half reads the text alone, the second an image too."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import cached_self_attention, self_attention
from fmjax.models.layers.disentangled import check_decoder
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    check_length,
    check_sizes,
)
from fmjax.models.layers.language_head import LanguageHead, padded
from fmjax.models.layers.logical_axes import normal_init
from fmjax.models.layers.transformer import Cache, Context, Stack, empty_cache
from fmjax.models.layers.transformer_config import TransformerConfig


@configurable("caption_decoder")
class CaptionDecoder(nn.Module):
    """CoCa's decoder (Yu et al. 2022, section 3.2).

    The first half is causal and attends to no image. At the end of the text stands a
    learned [CLS]: it attends to all of the text, and what it becomes stands for the
    text; no token attends to it. The second half is causal too, reads what the first
    made of the tokens, and attends to vectors of an image.

    Attributes:
      unimodal: sizes and choices of the first half.
      multimodal: of the second half; of the same width.
      vocab_size: V; ids at and above it are never predicted.
      max_length: the longest text, without start_id.
      start_id: what is read before a text, and its first token predicted from; None for
        texts that begin with a BOS of their own.
      tie_embeddings: the head is the transposed table of token vectors.
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.
    """

    unimodal: TransformerConfig
    multimodal: TransformerConfig
    vocab_size: int
    max_length: int
    start_id: int | None
    tie_embeddings: bool = False
    vocab_multiple: int = 128

    def __post_init__(self):
        check_sizes(self)
        name, start = self.gin_name, self.start_id
        if start is not None and not 0 <= start < self.vocab_size:
            raise UserError(
                f"{name}.start_id = {start}: expected None, or 0 to "
                f"{name}.vocab_size - 1 = {self.vocab_size - 1}."
            )
        widths = self.unimodal.embed_dim, self.multimodal.embed_dim
        if widths[0] != widths[1]:
            raise UserError(
                f"{name}.unimodal: transformer.embed_dim = {widths[0]}; "
                f"{name}.multimodal: {widths[1]}. One reads what the other gives, so "
                "expected the same."
            )
        for half in ("unimodal", "multimodal"):
            check_decoder(getattr(self, half).position_bias, f"{name}.{half}")
        if self.unimodal.window is not None:
            raise UserError(
                f"{name}.unimodal: transformer.window = {self.unimodal.window} would "
                "hide the text from [CLS]; expected None."
            )
        super().__post_init__()

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the unimodal half, whose [CLS] embeds the text."""
        return self.unimodal

    @property
    def starts(self) -> int:
        """Tokens that are read before those of a text."""
        return int(self.start_id is not None)

    @property
    def positions(self) -> int:
        """Tokens that can be read, those before a text included."""
        return self.max_length + self.starts

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        return padded(self.vocab_size, self.vocab_multiple)

    def setup(self):
        """Declares the parts."""
        c, rows = self.unimodal, self.padded_vocab_size
        self.tokens = Embedding(rows, c.embed_dim, "vocab", c.init_std, c.compute_dtype)
        self.inputs = InputEmbedding(c, self.positions, "learned")
        self.cls = self.param("cls", normal_init(c.init_std, "norm"), (c.embed_dim,))
        self.unimodal_stack = Stack(c)
        self.multimodal_stack = Stack(self.multimodal, cross=True)
        self.language_head = LanguageHead(
            self.vocab_size,
            rows,
            self.tie_embeddings,
            False,
            1.0,
            None,
            c.init_std,
            self.multimodal.compute_dtype,
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The text by itself.

        Args:
          tokens: ids below vocab_size.
          padding_mask: False for padding, which no token attends to.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give them.

        Returns:
          hidden: [B, N, D] after the final norm, of start_id, if there is one, and the
          tokens; pooled: [B, D], of [CLS]; hidden_states: [layers + 1, B, N, D]; router
          as in `Stack`.
        """
        check_length(self.gin_name, tokens, self.max_length)
        tokens, padding_mask = self._started(tokens, padding_mask)
        B, N = tokens.shape
        x = self._embed(tokens, jnp.arange(N)[None], keys)
        cls = jnp.broadcast_to(self.cls.astype(x.dtype), (B, 1, x.shape[-1]))
        x = jnp.concatenate([x, cls], axis=1)
        if padding_mask is not None:
            padding_mask = jnp.pad(padding_mask, [(0, 0), (0, 1)], constant_values=True)
        # Behind the longest text, so that padding does not move it.
        places = jnp.append(jnp.arange(N), self.positions)[None]
        mask = self_attention(True, None, padding_mask)
        context = Context(places, mask, keys=keys)
        out = self.unimodal_stack(x, context, None, hidden_states)
        hidden = out["hidden"]
        given = {"hidden": hidden[:, :N], "pooled": hidden[:, N]}
        if hidden_states:
            given["hidden_states"] = out["hidden_states"][:, :, :N]
        return given | {"router": out["router"]}

    def look(
        self,
        hidden: Float[Array, "B N D"],
        encoder_hidden: Float[Array, "B Q E"],
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The second half: what `Stack` gives.

        Args:
          hidden: what the first half gave.
          encoder_hidden: vectors of each text's image.
          padding_mask: as there, as are the others.
          keys: likewise.
          hidden_states: likewise.
        """
        N = hidden.shape[1]
        if padding_mask is not None:
            padding_mask = jnp.pad(
                padding_mask,
                [(0, 0), (N - padding_mask.shape[1], 0)],
                constant_values=True,
            )
        context = Context(
            jnp.arange(N)[None],
            self_attention(True, None, padding_mask),
            encoder_hidden=encoder_hidden,
            keys=keys,
        )
        return self.multimodal_stack(hidden, context, None, hidden_states)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        encoder_hidden: Float[Array, "B Q E"] | None,
        positions: Int[Array, "B T"],
        cache: tuple[Cache, Cache],
    ) -> tuple[Float[Array, "B T D"], tuple[Cache, Cache]]:
        """Both halves over tokens that follow those in a cache.

        Args:
          tokens: ids below vocab_size, start_id the first of all if there is one.
          encoder_hidden: as in `look`; None where the cache has read it.
          positions: of the tokens, 0 that of the first of all.
          cache: of `empty_cache`.

        Returns:
          hidden of the second half, and the cache with these tokens in it.
        """
        mask = cached_self_attention(positions)
        x = self._embed(tokens, positions, None)
        first = self.unimodal_stack(x, Context(positions, mask), cache[0])
        context = Context(positions, mask, encoder_hidden=encoder_hidden)
        second = self.multimodal_stack(first["hidden"], context, cache[1])
        return second["hidden"], (first["cache"], second["cache"])

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.language_head(hidden, self.tokens.table)

    def empty_cache(self, rows: int, length: int, encoder_length: int) -> tuple:
        """Caches of both halves, for `length` positions of every row."""
        return (
            empty_cache(self.unimodal, rows, length),
            empty_cache(self.multimodal, rows, length, encoder_length),
        )

    def train_flops_per_text(self, params, length: int, encoder_length: int) -> float:
        """Matrix FLOPs of a training step for each text of `length` tokens.

        Args:
          params: the parameters, or their shapes.
          length: of a text.
          encoder_length: vectors of an image, each as wide as the image's tower.
        """
        c, N = self.multimodal, length + self.starts
        alone = 6.0 * matmul_parameters(params["unimodal_stack"], self.unimodal)
        alone += attention_flops(self.unimodal, N + 1)
        # The keys and values of cross-attention are made of the image's vectors.
        cross = sum(
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if path[-1].key in ("key", "value") and path[-2].key == "cross_attention"
        )
        both = matmul_parameters(params["multimodal_stack"], c) - cross
        both += self.padded_vocab_size * c.embed_dim
        looking = attention_flops(c, N) + attention_flops(c, encoder_length, "cross")
        return (
            (N + 1) * alone + N * (6.0 * both + looking) + 6.0 * encoder_length * cross
        )

    def _started(self, tokens: Array, padding_mask: Array | None) -> tuple:
        """Tokens and padding_mask with start_id before them, if there is one."""
        if self.start_id is None:
            return tokens, padding_mask
        before = [(0, 0), (1, 0)]
        tokens = jnp.pad(tokens, before, constant_values=self.start_id)
        if padding_mask is not None:
            padding_mask = jnp.pad(padding_mask, before, constant_values=True)
        return tokens, padding_mask

    def _embed(self, tokens: Array, positions: Array, keys: Keys) -> Array:
        at_input = fold_keys(keys, self.unimodal.num_layers)
        return self.inputs(self.tokens(tokens), positions, None, at_input)
