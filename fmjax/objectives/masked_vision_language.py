"""Masked vision-language modelling (M3AE, Geng et al. 2022).

Masked patches and masked tokens are predicted from the visible ones of both.
`masked_autoencoding` is the same for images alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.contracts import ReconstructsPairs, check_model
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.patches import pair
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.objectives.fit import check_names, check_tokens
from fmjax.objectives.masked_autoencoding import MaskedAutoencoding, keys_of
from fmjax.objectives.terms import Batch, LossOutput, RowShapes
from fmjax.objectives.token_loss import TokenLoss


@configurable("masked_vision_language")
@dataclasses.dataclass(frozen=True)
class MaskedVisionLanguage(MaskedAutoencoding, TokenLoss):
    """Masked modelling of images and texts: squared error plus cross-entropy.

    The encoder reads the visible patches and tokens. Patches are masked as in
    `MaskedAutoencoding`; masked tokens are chosen among those that are not padding.

    Attributes:
      model: reconstructs both, such as `m3ae`.
      word_mask_ratio: share of a text's tokens that are masked, at least one token.
      words: coefficient of the cross-entropy of the tokens (0.5 in the paper).

    The other fields are those of `MaskedAutoencoding` and `TokenLoss`.
    """

    word_mask_ratio: float = 0.75
    words: float = 0.5

    unit = "pairs"

    def __post_init__(self):
        MaskedAutoencoding.__post_init__(self)
        TokenLoss.__post_init__(self)
        check_model(
            self,
            ReconstructsPairs,
            "a model that reconstructs images and texts, such as @m3ae()",
        )
        require(self, "word_mask_ratio", 0 < self.word_mask_ratio <= 1, "0 < x ≤ 1")
        require(self, "words", self.words >= 0, "at least 0")

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        shape = (1, *pair(self.model.image_size), self.model.channels)
        return self.model.init(rng, jnp.zeros(shape), jnp.zeros((1, 1), jnp.int32))

    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError where the model cannot take such rows."""
        check_names(
            self, ("images", "tokens", "padding_mask", "weights"), ("labels",), rows
        )
        self._check_patches(rows)
        check_tokens(self.model, "tokens", rows["tokens"], vocab_size)

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per pair."""
        height, width = self.model.grid
        (length,) = rows["tokens"]
        return self.model.train_flops_per_pair(
            params, self.num_visible(height * width), length
        )

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms and metrics of a batch.

        Args:
          variables: {"params": …}.
          batch: images float32 [B, height, width, C], tokens int32 [B, T],
            padding_mask bool [B, T], weights float32 [B].
          rng: one key per example for masks and dropout; None in evaluation, where the
            masks of a pair are seeded by the image's pixels.

        Returns:
          Terms "squared_error", "cross_entropy" and, if its coefficient is not 0,
          "z_loss"; metrics "nll" and "accuracy" of the masked tokens.
        """
        visible = self.visible(batch["images"], rng)
        hidden = self.hidden_words(batch["images"], batch["padding_mask"], rng)
        out, vectors = self._reconstruct(variables, batch, visible, ~hidden, rng)
        weights = hidden * batch["weights"][:, None]
        terms, metrics = self._predict(
            variables, vectors, batch["tokens"], weights, coefficient=self.words
        )
        error = self._squared_error(out["logits"], batch, visible)
        return LossOutput({"squared_error": error} | terms, metrics)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weights of the terms: numbers of images and of masked tokens."""
        hidden = self._num_hidden(batch["padding_mask"])
        return super().weights(batch) | self._prediction_weights(
            hidden * batch["weights"]
        )

    def hidden_words(
        self,
        images: Float[Array, "B height width C"],
        padding_mask: Bool[Array, "B T"],
        keys: Keys,
    ) -> Bool[Array, "B T"]:
        """True for masked tokens; False for padding."""
        if keys is None:
            keys = keys_of(images)
        draw = jax.vmap(lambda key: jax.random.uniform(key, padding_mask.shape[1:]))
        # Padding sorts last, so that only tokens are chosen.
        order = jnp.where(padding_mask, draw(fold_keys(keys, 2**31 + 1)), 2.0)
        rank = order.argsort(-1).argsort(-1)
        return padding_mask & (rank < self._num_hidden(padding_mask)[:, None])

    def _num_hidden(self, padding_mask: Bool[Array, "B T"]) -> Float[Array, " B"]:
        """The number of masked tokens of each text."""
        length = padding_mask.sum(-1)
        count = jnp.maximum(jnp.round(self.word_mask_ratio * length), 1)
        return jnp.minimum(count, length)

    def _paint(self, variables, batch, visible, keys) -> Float[Array, "B N P"]:
        """Predicted patches, given all tokens, for `pictures`."""
        seen = batch["padding_mask"]
        return self._reconstruct(variables, batch, visible, seen, keys)[0]["logits"]

    def _reconstruct(self, variables, batch, visible, seen, keys):
        return self.model.apply(
            variables,
            batch["images"],
            TextInputs(batch["tokens"], padding_mask=batch["padding_mask"]),
            visible,
            seen,
            keys=keys,
            method="reconstruct",
        )
