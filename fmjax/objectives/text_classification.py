"""Classification of texts and of pairs of texts, and regression."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.contracts import ClassifiesTexts, check_model
from fmjax.objectives.class_loss import NamesClasses, class_losses
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term


@configurable("text_classification")
@dataclasses.dataclass(frozen=True)
class TextClassification(LabelObjective):
    """Text classification: mean cross-entropy of the classes of texts, or regression.

    Encoders predict from their pooled vector, decoders and encoder-decoders from the
    vector of the last token; an encoder-decoder reads the text on both sides. A text
    may be a pair of texts.

    Attributes:
      output: "softmax" for one label of each text; "sigmoid" for any number of them, by
        the sum over classes of binary cross-entropies; "regression" for a number, by
        the squared error of a model with one class.
    """

    output: Literal["softmax", "sigmoid", "regression"] = "softmax"

    unit = "texts"
    classes_field = "num_classes"
    logits_name = "class_logits"

    def __post_init__(self):
        super().__post_init__()
        check_model(
            self,
            ClassifiesTexts,
            "a language model with num_classes, such as @gpt(), @bert() or @seq2seq()",
        )
        if self.output == "regression":
            for name, default in (("label_smoothing", 0.0), ("class_weights", ())):
                is_default = getattr(self, name) == default
                require(self, name, is_default, f"{default} with output = 'regression'")

    def check_data(self, data: Any) -> None:
        """Raises a UserError if the labels of the data are not those of the model."""
        if isinstance(data, NamesClasses):
            has_names, is_number = bool(data.class_names()), self.output == "regression"
            if has_names == is_number:
                found = "classes" if has_names else "numbers, or none"
                raise UserError(
                    f"text_classification.output = {self.output!r}, but the labels of "
                    f"experiment.data are {found}; expected "
                    f"{'numbers' if is_number else 'classes'}, see "
                    "labelled_records.numbers."
                )
            if is_number:
                return
        super().check_data(data)

    def loss_of(self, logits: Float[Array, "B classes"], batch: Batch) -> LossOutput:
        """Terms and metrics of the logits of a batch.

        Args:
          logits: of each text.
          batch: weights float32 [B]; labels int32 [B], or for "sigmoid" float32
            [B, num_classes] with any number of ones, or for "regression" float32 [B].

        Returns:
          Term "cross_entropy" and metric "accuracy", with "sigmoid" the share of texts
          whose labels are all right; or term "squared_error".
        """
        labels, weights = batch["labels"], batch["weights"]
        if self.output == "regression":
            losses = jnp.square(logits[:, 0] - labels)
            term = Term((losses * weights).sum(), weights.sum())
            return LossOutput({"squared_error": term}, {})
        targets = self._targets(labels)
        losses = class_losses(
            logits, targets, self.output, self.label_smoothing, self.class_weights
        )
        if self.output == "softmax":
            right = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], 1)[:, 0]
        else:
            right = ((logits > 0) == (targets > 0.5)).all(-1)
        terms = {"cross_entropy": Term((losses * weights).sum(), weights.sum())}
        accuracy = Ratio((right * weights).sum(), weights.sum())
        return LossOutput(terms, {"accuracy": accuracy})

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of the term: the number of texts, by their weights."""
        is_number = self.output == "regression"
        name = "squared_error" if is_number else "cross_entropy"
        return {name: batch["weights"].sum()}

    def _targets(self, labels: Array) -> Float[Array, "B classes"]:
        return labels if labels.ndim == 2 else jax.nn.one_hot(labels, self.classes)

    def _check_labels(self, rows: RowShapes, binding: str) -> None:
        if self.output == "regression" and self.classes != 1:
            raise UserError(
                f"{binding} = {self.classes}; expected 1 with "
                "text_classification.output = 'regression'."
            )
        shape = (self.classes,) if self.output == "sigmoid" else ()
        if rows["labels"] not in ((), shape):
            raise UserError(
                f"data gives labels of shape {rows['labels']}; expected one number, or "
                f"with text_classification.output = 'sigmoid' {binding} = "
                f"{self.classes}."
            )
