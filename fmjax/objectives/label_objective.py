"""The base class of objectives that predict labels of texts, or of their tokens."""

import abc
import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.errors import UserError, require
from fmjax.models.contracts import GeneratesFromText
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.text_heads import init_variables, text_outputs
from fmjax.objectives.class_loss import check_class_count
from fmjax.objectives.fit import check_names, check_tokens
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Batch, LossOutput, RowShapes


@dataclasses.dataclass(frozen=True)
class LabelObjective(Objective):
    """Labels of texts or tokens, predicted by a head of a language model.

    Attributes:
      model: a language model; its number of classes, if none is bound, is the data's.
      label_smoothing: share of each target spread over all classes (Szegedy 2016).
      class_weights: multiply the loss of each class, in the order of the labels, such
        as (0.6, 3.0) where the second class is rare; none for 1. The loss is divided by
        the number of labels, not by the sum of their weights.
    """

    model: nn.Module
    label_smoothing: float = 0.0
    class_weights: tuple[float | int, ...] = ()

    # Field of the model with the number of classes, and the output with their logits.
    classes_field: ClassVar[str]
    logits_name: ClassVar[str]

    def __post_init__(self):
        smoothing, weights = self.label_smoothing, self.class_weights
        require(self, "label_smoothing", 0 <= smoothing < 1, "0 ≤ x < 1")
        require(self, "class_weights", min(weights, default=0) >= 0, "at least 0 each")

    @property
    def classes(self) -> int | None:
        """The number of classes of the model; None if it has no such head."""
        return getattr(self.model, self.classes_field)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the model."""
        return self.model.vocab_size

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        return init_variables(self.model, rng)

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms and metrics of a batch: `loss_of` its logits.

        Args:
          variables: {"params": …}.
          batch: tokens and segment_ids int32 [B, T], 0 for padding; weights float32
            [B]; labels, see `loss_of`; optionally token_types int32 [B, T], for models
            that read them.
          rng: one key per text for dropout; None in evaluation.
        """
        return self.loss_of(self.predict(variables, batch, rng), batch)

    @abc.abstractmethod
    def loss_of(
        self, logits: Float[Array, "B ... classes"], batch: Batch
    ) -> LossOutput:
        """Terms and metrics of the logits of a batch."""

    def predict(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None = None
    ) -> Float[Array, "B ... classes"]:
        """The logits of a batch, float32; `rng` as in `loss`."""
        # Of an encoder-decoder, whose arguments have other names, the segments alone.
        fields = getattr(self.model, "text_arguments", {}).get("text", ("segment_ids",))
        read = [name for name in ("segment_ids", "token_types") if name in fields]
        text = TextInputs.from_arrays(batch, read)
        return text_outputs(self.model, variables, text, rng)[self.logits_name]

    def weighted_sum(
        self, values: Float[Array, "B ..."], batch: Batch
    ) -> Float[Array, ""]:
        """The sum of a number for each prediction, by the weights of `weights`."""
        return (values * batch["weights"]).sum()

    def check(self, rows: RowShapes, vocab_size: int) -> None:
        """Raises a UserError where the model cannot take such rows.

        Args:
          rows: the shape of each array of a row.
          vocab_size: of the data.
        """
        name = f"{self.model.gin_name}.{self.classes_field}"
        if not self.classes:
            raise UserError(
                f"{name} = {self.classes}, which @{self.gin_name}() needs; expected at "
                "least 1."
            )
        if len(self.class_weights) not in (0, self.classes):
            raise UserError(
                f"{self.gin_name}.class_weights has {len(self.class_weights)} numbers; "
                f"expected {self.classes}, a weight for each class."
            )
        needed = ("tokens", "segment_ids", "labels", "weights")
        check_names(self, needed, ("token_types",), rows)
        check_tokens(self.model, "tokens", rows["tokens"], vocab_size)
        self._check_labels(rows, name)

    @abc.abstractmethod
    def _check_labels(self, rows: RowShapes, binding: str) -> None:
        """Raises a UserError for labels of a wrong shape."""

    def check_data(self, data: Any) -> None:
        """Raises a UserError if the model's number of classes is not the data's."""
        check_class_count(self, self.classes_field, data)

    def train_flops_per_row(self, params: Any, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per row, padding included."""
        (length,) = rows["tokens"]
        two_sided = isinstance(self.model, GeneratesFromText)
        lengths = (length, length) if two_sided else (length,)
        per_token = self.model.train_flops_per_token(params, *lengths, predicted=0.0)
        return length * per_token
