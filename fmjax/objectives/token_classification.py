"""Classification of tokens, such as the tags of named entities."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.contracts import ClassifiesTokens, check_model
from fmjax.objectives.class_loss import class_losses
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term


@configurable("token_classification")
@dataclasses.dataclass(frozen=True)
class TokenClassification(LabelObjective):
    """Token classification: mean cross-entropy of the classes of labelled tokens.

    Tokens without a label, such as the second part of a word, do not count.
    """

    unit = "tokens"
    classes_field = "token_classes"
    logits_name = "token_logits"

    def __post_init__(self):
        super().__post_init__()
        check_model(
            self,
            ClassifiesTokens,
            "a language model with token_classes, such as @bert() or @gpt()",
        )

    def loss_of(self, logits: Float[Array, "B T classes"], batch: Batch) -> LossOutput:
        """Terms and metrics of the logits of a batch.

        Args:
          logits: of each token.
          batch: labels int32 [B, T], below 0 of tokens without a label; weights float32
            [B].

        Returns:
          Term "cross_entropy"; metric "accuracy" of the labelled tokens.
        """
        labels, weights = batch["labels"], _token_weights(batch)
        losses = class_losses(
            logits,
            jax.nn.one_hot(labels, self.classes),
            "softmax",
            self.label_smoothing,
            self.class_weights,
        )
        right = logits.argmax(-1) == labels
        terms = {"cross_entropy": Term((losses * weights).sum(), weights.sum())}
        accuracy = Ratio((right * weights).sum(), weights.sum())
        return LossOutput(terms, {"accuracy": accuracy})

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of the term: the number of labelled tokens."""
        return {"cross_entropy": _token_weights(batch).sum()}

    def weighted_sum(
        self, values: Float[Array, "B T"], batch: Batch
    ) -> Float[Array, ""]:
        """The sum of a number for each token, over the labelled ones."""
        return (values * _token_weights(batch)).sum()

    def _check_labels(self, rows: RowShapes, binding: str) -> None:
        if rows["labels"] != rows["tokens"]:
            raise UserError(
                f"data gives labels of shape {rows['labels']} for rows of "
                f"{rows['tokens'][0]} tokens; expected a label for each token, such as "
                "of @labelled_words()."
            )


def _token_weights(batch: Batch) -> Float[Array, "B T"]:
    has_label: Bool[Array, "B T"] = batch["labels"] >= 0
    return jnp.where(has_label, batch["weights"][:, None], 0.0)
