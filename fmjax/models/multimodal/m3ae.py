"""Masked autoencoders of images and their texts (M3AE, Geng et al. 2022)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.models.layers.attention_mask import self_attention
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.image_positions import Grid
from fmjax.models.layers.inputs import InputEmbedding
from fmjax.models.layers.language_head import LanguageHead
from fmjax.models.layers.logical_axes import normal_init
from fmjax.models.layers.patches import grid_of, pair
from fmjax.models.layers.text_inputs import Text, TextArguments, TextInputs
from fmjax.models.layers.text_model import TextModel
from fmjax.models.layers.transformer import Context
from fmjax.models.vision.mae import MAE


@configurable("m3ae")
class M3AE(TextModel, MAE):
    """A masked autoencoder of an image's patches and its text's tokens together.

    The encoder reads the visible patches and tokens; the decoder reconstructs all
    patches and predicts all tokens. Called without a text, it is `MAE`.

    Attributes:
      vocab_size: V. 0, as in configs that do not bind it: that of the data's tokenizer,
        see `fmjax.training.vocab_size`.
      max_length: the longest text.
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.

    The other fields are those of `MAE`. Positions of tokens are learned.
    """

    vocab_size: int = 0
    max_length: int = 0
    vocab_multiple: int = 128

    text_arguments: ClassVar[TextArguments] = {"text": ("padding_mask",)}

    def setup(self):
        """Declares the submodules."""
        super().setup()
        c, d = self.encoder, self.decoder
        rows = self.padded_vocab_size
        self.tokens = Embedding(rows, c.embed_dim, "vocab", c.init_std, c.compute_dtype)
        self.inputs = InputEmbedding(c, self.max_length, "learned")
        init = normal_init(d.init_std, "position", "embed")
        shape = (self.max_length, d.embed_dim)
        self.decoder_word_positions = self.param("decoder_word_positions", init, shape)
        self.words = LanguageHead(
            self.vocab_size,
            rows,
            tied=False,
            init_std=d.init_std,
            dtype=d.compute_dtype,
            bias=True,
            scale=d.multipliers.logits,
        )

    def __call__(
        self,
        images: Float[Array, "B height width C"],
        text: Text | None = None,
        visible: Int[Array, "B K"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Reconstructs images and texts from their visible parts.

        Args:
          images: normalized.
          text: tokens [B, T], or a `TextInputs` with a padding_mask; None for images
            alone.
          visible: indices of the visible patches; None for all.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return the encoder's.

        Returns:
          As `MAE`, `hidden` being [B, 1 + K + T, D], of the class token, patches and
          tokens; with a text also word_logits: float32 [B, T, V].
        """
        if text is None:
            return super().__call__(images, visible, keys, hidden_states)
        text = self._check(text)
        if text.padding_mask is None:
            everywhere = jnp.ones(text.tokens.shape, bool)
            text = dataclasses.replace(text, padding_mask=everywhere)
        out, words = self.reconstruct(
            images, text, visible, text.padding_mask, keys, hidden_states
        )
        return out | {"word_logits": self.head(words)[..., : self.vocab_size]}

    def reconstruct(
        self,
        images: Float[Array, "B height width C"],
        text: TextInputs,
        visible: Int[Array, "B K"] | None,
        seen: Bool[Array, "B T"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> tuple[dict[str, Array], Float[Array, "B T E"]]:
        """What `__call__` returns without word_logits, and the input of `head`.

        Args:
          images: as in `__call__`.
          text: with a padding_mask.
          visible: likewise.
          seen: True for tokens that the encoder reads.
          keys: likewise.
          hidden_states: likewise.
        """
        text = self._read(text)
        grid = grid_of(images.shape[1:3], pair(self.patch_size))
        # So that dropout draws otherwise than for the patches.
        at_words = fold_keys(keys, self.encoder.num_layers + 2)
        words = self.inputs(self.tokens(text.tokens), text.positions, None, at_words)
        patches = self._visible_patches(images, visible)
        out = self.vit.encode(
            patches, keys, hidden_states, words, seen & text.padding_mask
        )
        keys = fold_keys(keys, self.encoder.num_layers + 1)
        pixels, words = self._decode_both(
            out["hidden"], text.padding_mask, visible, seen, grid, keys
        )
        return out | {"logits": pixels}, words

    def head(self, words: Float[Array, "B T E"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.words(words, None)

    def _decode_both(
        self,
        hidden: Array,
        padding_mask: Array,
        visible: Array | None,
        seen: Array,
        grid: Grid,
        keys: Keys,
    ) -> tuple[Float[Array, "B N P"], Float[Array, "B T E"]]:
        T = padding_mask.shape[1]
        x = self.into_decoder(hidden)
        patches = self._decoder_input(x[:, :-T], visible, grid)
        words = jnp.where(seen[..., None], x[:, -T:], self.mask_token.astype(x.dtype))
        words = words + self.decoder_word_positions[:T].astype(x.dtype)
        before = jnp.ones(patches.shape[:2], bool)
        context = Context(
            jnp.arange(patches.shape[1] + T)[None],
            self_attention(
                False, None, jnp.concatenate([before, padding_mask], axis=1)
            ),
            keys=keys,
        )
        x = jnp.concatenate([patches, words], axis=1)
        x = self.decoder_stack(x, context)["hidden"]
        return self._pixels(x, grid), x[:, -T:]

    def train_flops_per_pair(self, params, visible: int, length: int) -> float:
        """Matrix FLOPs of a training step for an image and a text of this length."""
        flops = self.train_flops_per_image(params, visible, extra=length)
        return flops + 6.0 * length * params["words"]["kernel"].size
