"""The text decoder of CoCa: a unimodal stack, and a multimodal one above it."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import cached_self_attention, self_attention
from fmjax.models.layers.disentangled import check_decoder
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import InputEmbedding
from fmjax.models.layers.language_head import LanguageHead
from fmjax.models.layers.logical_axes import normal_init
from fmjax.models.layers.multipliers import multiply
from fmjax.models.layers.text_inputs import Text, TextArguments, TextInputs
from fmjax.models.layers.text_model import (
    TextModel,
    check_same_width,
    check_start_id,
    embed_text,
)
from fmjax.models.layers.transformer import Cache, Context, Stack, empty_cache
from fmjax.models.layers.transformer_config import TransformerConfig


@configurable("caption_decoder")
class CaptionDecoder(TextModel):
    """CoCa's decoder (Yu et al. 2022, section 3.2).

    The unimodal stack is causal and has no cross-attention. A learned [CLS] follows the
    text: it attends to all tokens, no token attends to it, and its output vector embeds
    the text. The multimodal stack, causal as well, reads the unimodal stack's outputs
    of the tokens, and its cross-attention reads vectors of an image.

    Attributes:
      unimodal: sizes and choices of the unimodal stack.
      multimodal: those of the multimodal stack, of the same width.
      vocab_size: V; ids at and above it are never predicted. 0, as in configs that do
        not bind it: that of the data's tokenizer, see `fmjax.training.vocab_size`.
      max_length: the longest text, without start_id.
      start_id: a token that is put before each text, from which its first token is
        predicted; None for texts that begin with a BOS of their own.
      tie_embeddings: whether the head is the transposed embedding table.
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.
    """

    unimodal: TransformerConfig
    multimodal: TransformerConfig
    vocab_size: int
    max_length: int
    start_id: int | None
    tie_embeddings: bool = False
    vocab_multiple: int = 128

    text_arguments: ClassVar[TextArguments] = {"text": ("padding_mask",)}

    def __post_init__(self):
        super().__post_init__()
        name = self.gin_name
        check_start_id(self)
        check_same_width(self, "unimodal", "multimodal")
        for half in ("unimodal", "multimodal"):
            check_decoder(getattr(self, half).position_bias, f"{name}.{half}")
        if self.unimodal.window is not None:
            raise UserError(
                f"{name}.unimodal: transformer.window = {self.unimodal.window} would "
                "hide the text from [CLS]; expected None."
            )

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the unimodal stack, whose [CLS] embeds the text."""
        return self.unimodal

    @property
    def starts(self) -> int:
        """Number of tokens that are put before a text: 1 with a start_id, else 0."""
        return int(self.start_id is not None)

    @property
    def positions(self) -> int:
        """The most tokens that the stacks read: max_length, and 1 with a start_id."""
        return self.max_length + self.starts

    def setup(self):
        """Declares the submodules."""
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
            c.init_std,
            self.multimodal.compute_dtype,
            scale=self.multimodal.multipliers.logits,
        )

    def __call__(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """The unimodal stack.

        Args:
          text: tokens [B, T], or a `TextInputs` with a padding_mask.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          hidden: [B, N, D] after the final norm, of start_id, if there is one, and the
          tokens, so that N is T or T + 1; pooled: [B, D], of [CLS]; hidden_states:
          [layers + 1, B, N, D]; router as in `Stack`.
        """
        text, c = self._started(self._check(text)), self.unimodal
        padding_mask = text.padding_mask
        B, N = text.tokens.shape
        x = embed_text(self.tokens, self.inputs, text, keys)
        cls = multiply(self.cls.astype(x.dtype), c.multipliers.embedding)
        cls = jnp.broadcast_to(cls, (B, 1, x.shape[-1]))
        x = jnp.concatenate([x, cls], axis=1)
        if padding_mask is not None:
            padding_mask = jnp.pad(padding_mask, [(0, 0), (0, 1)], constant_values=True)
        # [CLS] has the position after the longest text, however much padding there is.
        positions = jnp.append(jnp.arange(N), self.positions)[None]
        mask = self_attention(True, None, padding_mask)
        context = Context(positions, mask, keys=keys)
        out = self.unimodal_stack(x, context, None, hidden_states)
        hidden = out["hidden"]
        given = {"hidden": hidden[:, :N], "pooled": hidden[:, N]}
        if hidden_states:
            given["hidden_states"] = out["hidden_states"][:, :, :N]
        return given | {"router": out["router"]}

    def cross_attend(
        self,
        hidden: Float[Array, "B N D"],
        encoder_hidden: Float[Array, "B Q E"],
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The multimodal stack; returns what `Stack` does.

        Args:
          hidden: the unimodal stack's output.
          encoder_hidden: vectors of each text's image.
          padding_mask: that of the text, without start_id.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.
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

    def decode(
        self,
        tokens: Int[Array, "B T"],
        encoder_hidden: Float[Array, "B Q E"] | None,
        positions: Int[Array, "B T"],
        cache: tuple[Cache, Cache],
    ) -> tuple[Float[Array, "B T D"], tuple[Cache, Cache]]:
        """Both stacks over tokens that follow those in a cache.

        Args:
          tokens: ids below vocab_size; a text begins with start_id, if there is one.
          encoder_hidden: as in `cross_attend`; None where its keys and values are in
            the cache.
          positions: of the tokens, from 0.
          cache: from `empty_cache`, or what an earlier call returned.

        Returns:
          The multimodal stack's "hidden", and the cache with these tokens in it.
        """
        mask = cached_self_attention(positions)
        text = TextInputs(tokens, positions=positions)
        x = embed_text(self.tokens, self.inputs, text, None)
        first = self.unimodal_stack(x, Context(positions, mask), cache[0])
        context = Context(positions, mask, encoder_hidden=encoder_hidden)
        second = self.multimodal_stack(first["hidden"], context, cache[1])
        return second["hidden"], (first["cache"], second["cache"])

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.language_head(hidden, self.tokens.table)

    def empty_cache(self, rows: int, length: int, encoder_length: int) -> tuple:
        """Caches of both stacks, for `length` positions of every row."""
        return (
            empty_cache(self.unimodal, rows, length),
            empty_cache(self.multimodal, rows, length, encoder_length),
        )

    def train_flops_per_text(self, params, length: int, encoder_length: int) -> float:
        """Matrix FLOPs of a training step for each text of `length` tokens.

        Args:
          params: the parameters, or their shapes.
          length: tokens of a text, without start_id.
          encoder_length: vectors of an image.
        """
        c, N = self.multimodal, length + self.starts
        alone = 6.0 * matmul_parameters(params["unimodal_stack"], self.unimodal)
        alone += attention_flops(self.unimodal, N + 1)
        # Cross-attention computes keys and values once for each vector of the image.
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

    def _started(self, text: TextInputs) -> TextInputs:
        """The text with start_id before it, if there is one, and positions."""
        tokens, padding_mask = text.tokens, text.padding_mask
        if self.start_id is not None:
            before = [(0, 0), (1, 0)]
            tokens = jnp.pad(tokens, before, constant_values=self.start_id)
            if padding_mask is not None:
                padding_mask = jnp.pad(padding_mask, before, constant_values=True)
        positions = jnp.arange(tokens.shape[1])[None]
        return TextInputs(tokens, positions=positions, padding_mask=padding_mask)
