"""Supervised image classification, by softmax or by a sigmoid per class."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.contracts import ClassifiesImages, check_model
from fmjax.models.layers.patches import pair
from fmjax.objectives.class_loss import check_class_count, class_losses
from fmjax.objectives.fit import check_images, check_names
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term

# Top-5 accuracy says little if there are only a few classes.
_TOP = 5


@configurable("classification")
@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Image classification: mean cross-entropy of the classes.

    Attributes:
      model: gives `logits` of `images`, such as `vit` with vit.num_classes.
      output: "softmax", or "sigmoid" for the sum over classes of binary
        cross-entropies (Beyer et al. 2020, "Are we done with ImageNet?"), which allows
        several labels.
      label_smoothing: share of each target spread over all classes (Szegedy 2016).
    """

    model: nn.Module
    output: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0

    unit = "images"

    def __post_init__(self):
        smoothing = self.label_smoothing
        require(self, "label_smoothing", 0 <= smoothing < 1, "0 ≤ x < 1")
        check_model(
            self,
            ClassifiesImages,
            "a model of images with a classifier, such as @vit()",
        )

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        shape = (1, *pair(self.model.image_size), self.model.channels)
        return self.model.init(rng, jnp.zeros(shape))

    def check(self, rows: RowShapes, vocab_size: int) -> None:
        """Raises a UserError where the model cannot take such rows.

        Args:
          rows: the shape of each array of a row.
          vocab_size: of the data; ignored.
        """
        del vocab_size
        if not self.model.num_classes:
            raise UserError(
                f"{self.model.gin_name}.num_classes = 0, which @classification() "
                "needs; expected at least 1."
            )
        mixed = ("other_labels", "label_share")
        check_names(self, ("images", "labels", "weights"), mixed, rows)
        check_images(self.model, rows["images"])
        classes = (self.model.num_classes,)
        if rows["labels"] == () or (rows["labels"], self.output) == (
            classes,
            "sigmoid",
        ):
            return
        name = self.model.gin_name
        raise UserError(
            f"data gives labels of shape {rows['labels']}; expected one number, or "
            f"with classification.output = 'sigmoid' {name}.num_classes = {classes[0]}."
        )

    def check_data(self, data: Any) -> None:
        """Raises a UserError if the model's number of classes is not the data's."""
        check_class_count(self, "num_classes", data)

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for an image."""
        return self.model.train_flops_per_image(params, rows["images"][:2])

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms and metrics of a batch.

        Args:
          variables: {"params": …}.
          batch: images float32 [B, height, width, C]; weights float32 [B]; labels int32
            [B], or, for "sigmoid", float32 [B, num_classes] with any number of ones.
            For mixed images (mixup, CutMix) also other_labels int32 [B] and label_share
            float32 [B], the share of `labels`.
          rng: one key per example for dropout; None in evaluation.

        Returns:
          Term "cross_entropy"; metric "accuracy", and "top5_accuracy" in evaluation
          with more than 5 classes. A mixed image counts by the share of the label that
          was predicted.
        """
        out = self.model.apply(variables, batch["images"], keys=rng)
        logits, weights = out["logits"], batch["weights"]
        targets = self._targets(batch)
        losses = class_losses(logits, targets, self.output, self.label_smoothing)
        terms = {"cross_entropy": Term((losses * weights).sum(), weights.sum())}
        best = logits.argmax(-1, keepdims=True)
        shares = {"accuracy": jnp.take_along_axis(targets, best, axis=-1)[:, 0]}
        # Not in training: it takes a partial sort of all classes.
        if rng is None and logits.shape[-1] > _TOP:
            _, places = jax.lax.top_k(logits, _TOP)
            right = jnp.take_along_axis(targets, places, axis=-1)
            shares["top5_accuracy"] = jnp.minimum(right.sum(-1), 1)
        metrics = {
            name: Ratio((share * weights).sum(), weights.sum())
            for name, share in shares.items()
        }
        return LossOutput(terms, metrics)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of the term: the number of images, by their weights."""
        return {"cross_entropy": batch["weights"].sum()}

    def _targets(self, batch: Batch) -> Float[Array, "B classes"]:
        labels = batch["labels"]
        if labels.ndim == 2:
            return labels
        K = self.model.num_classes
        targets = jax.nn.one_hot(labels, K)
        if "other_labels" in batch:
            share = batch["label_share"][:, None]
            others = jax.nn.one_hot(batch["other_labels"], K)
            targets = share * targets + (1 - share) * others
        return targets
