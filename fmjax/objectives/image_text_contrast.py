"""Image-text contrastive learning (CLIP, SigLIP)."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError, require
from fmjax.models.contracts import EmbedsImagesAndTexts, check_model
from fmjax.models.layers.patches import pair
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.objectives.contrast import (
    is_nearest,
    sigmoid_contrast,
    softmax_contrast,
)
from fmjax.objectives.fit import check_images, check_names, check_tokens
from fmjax.objectives.objective import EmbeddingObjective, Embeddings
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term


@configurable("image_text_contrast")
@dataclasses.dataclass(frozen=True)
class ImageTextContrast(EmbeddingObjective):
    """Image-text contrastive loss over the global batch.

    Attributes:
      model: gives embeddings of both sides, such as `clip`.
      output: "softmax" (CLIP, Radford et al. 2021), the mean over both directions; or
        "sigmoid" (SigLIP, Zhai et al. 2023), a loss per pair, which requires clip.bias.
      chunks: number of chunks of the batch; logits with one chunk are in memory at a
        time.
    """

    model: nn.Module
    output: Literal["softmax", "sigmoid"] = "softmax"
    chunks: int = runtime_field(8)

    unit = "pairs"

    def __post_init__(self):
        require(self, "chunks", self.chunks >= 1, "at least 1")
        check_model(
            self,
            EmbedsImagesAndTexts,
            "a model that embeds images and texts, such as @clip()",
        )
        if self.output == "sigmoid" and self.model.bias is None:
            raise UserError(
                f"{self.model.gin_name}.bias = None, which {self.gin_name}.output = "
                "'sigmoid' needs; expected a number, such as -10.0."
            )

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        image = self.model.image
        shape = (1, *pair(image.image_size), image.channels)
        return self.model.init(rng, jnp.zeros(shape), jnp.zeros((1, 1), jnp.int32))

    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError where the model cannot take such rows."""
        check_names(
            self, ("images", "tokens", "padding_mask", "weights"), ("labels",), rows
        )
        check_images(self.model.image, rows["images"])
        check_tokens(self.model.text, "tokens", rows["tokens"], vocab_size)

    def check_data(self, data: Any) -> None:
        """Raises a UserError if text pooling would read the wrong token as EOS."""
        tower, tokenizer = self.model.text, data.tokenizer()
        if not isinstance(tower, TextEncoder):
            return
        by = tower.pooling
        if by == "eos" and tower.eos_id != tokenizer.eos_id:
            raise UserError(
                f"text_encoder.eos_id = {tower.eos_id}; expected {tokenizer.eos_id}, "
                "which ends the texts of experiment.data."
            )
        if by == "highest_id" and tokenizer.eos_id != tokenizer.vocab_size - 1:
            raise UserError(
                "text_encoder.pooling = 'highest_id', but the texts of experiment.data "
                f"end with {tokenizer.eos_id} of {tokenizer.vocab_size}; expected "
                f"'eos' with text_encoder.eos_id = {tokenizer.eos_id}."
            )

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per pair, without those of the loss."""
        return self.model.train_flops_per_pair(
            params, rows["images"][:2], rows["tokens"][0]
        )

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the text encoder."""
        return self.model.vocab_size

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of the term: the number of pairs, by their weights."""
        return {"contrastive": _count(batch)}

    def embed(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[Embeddings, LossOutput]:
        """Embeddings of both sides [B, E], and no terms.

        Args:
          variables: {"params": …}.
          batch: images float32 [B, height, width, C], tokens int32 [B, T],
            padding_mask bool [B, T], weights float32 [B], 0 for rows of padding.
          rng: one key per example for dropout; None in evaluation.
        """
        text = TextInputs(batch["tokens"], padding_mask=batch["padding_mask"])
        out = self.model.apply(variables, batch["images"], text, keys=rng)
        names = ("image_embeddings", "text_embeddings")
        return {name: out[name] for name in names}, LossOutput({}, {})

    def loss_from_embeddings(
        self,
        variables: dict,
        embeddings: Embeddings,
        batch: Batch,
        rng: Key[Array, " B"] | None,
    ) -> LossOutput:
        """The loss of all rows, given their embeddings.

        Returns:
          Term "contrastive"; metric "logit_scale", and in evaluation "image_to_text"
          and "text_to_image", retrieval accuracies at rank 1 within the batch.
        """
        images = embeddings["image_embeddings"]
        texts = embeddings["text_embeddings"]
        scaling = self.model.apply(variables, method="scaling")
        counts, chunks = batch["weights"] > 0, self.chunks
        scale = scaling["logit_scale"]
        if self.output == "softmax":
            both = softmax_contrast(images, texts, scale, counts, chunks)
            losses = (both[0] + both[1]) / 2
        else:
            bias = scaling["logit_bias"]
            losses = sigmoid_contrast(images, texts, scale, bias, counts, chunks)
        rows = _count(batch)
        metrics = {"logit_scale": Ratio(scale * rows, rows)}
        # Not in training: it takes as many products as the loss.
        if rng is None:
            found = is_nearest(images, texts, counts, chunks)
            for name, right in zip(("image_to_text", "text_to_image"), found):
                metrics[name] = Ratio(right.sum().astype(jnp.float32), rows)
        return LossOutput({"contrastive": Term(losses.sum(), rows)}, metrics)


def _count(batch: Batch) -> Float[Array, ""]:
    return (batch["weights"] > 0).sum().astype(jnp.float32)
