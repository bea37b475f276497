"""Classifying texts with the head of a model: `run.classify`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.text_template import text_template
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError
from fmjax.inference.text_rows import TextRow
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.text_heads import text_outputs


@dataclasses.dataclass(frozen=True)
class Classified:
    """What a model says of texts.

    Attributes:
      logits: one row for each text.
      labels: names of the classes; "LABEL_0", … if they have none.
      several: whether a text may have any number of labels.
    """

    logits: Float[np.ndarray, "N classes"]
    labels: tuple[str, ...]
    several: bool = False

    @property
    def probabilities(self) -> Float[np.ndarray, "N classes"]:
        """The softmax of the logits; with several labels the sigmoid of each."""
        if self.several:
            return 0.5 * (1 + np.tanh(0.5 * self.logits))  # without overflow
        shifted = self.logits - self.logits.max(1, keepdims=True)
        return np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)

    @property
    def names(self) -> list[str]:
        """The most probable class of each text."""
        return [self.labels[i] for i in self.logits.argmax(1)]

    @property
    def sets(self) -> list[tuple[str, ...]]:
        """With several labels: of each text those more probable than not."""
        return [
            tuple(self.labels[i] for i in np.flatnonzero(row > 0))
            for row in self.logits
        ]

    @property
    def scores(self) -> Float[np.ndarray, " N"]:
        """The output of a model with one class, such as a reward model.

        Raises:
          UserError: there are several classes.
        """
        if self.logits.shape[1] != 1:
            raise UserError(
                f"scores of {self.logits.shape[1]} classes: expected a model with one, "
                "such as a reward model; see `probabilities`."
            )
        return self.logits[:, 0]


def check_classifies_texts(model: nn.Module) -> None:
    """Raises a UserError for a model without a head that classifies texts."""
    of_texts = getattr(model, "text_arguments", {})
    if not getattr(model, "num_classes", None) or not of_texts:
        raise UserError(
            f"@{model.gin_name}() has no head that classifies texts; expected a model "
            "with num_classes, such as an imported *ForSequenceClassification."
        )


def as_labelled(tokenizer: Tokenizer, ids: Sequence[list[int]]) -> TextRow:
    """One text or two with special tokens, as rows of labelled texts have them."""
    template = text_template(tokenizer, len(ids))
    return TextRow(*special_template.fill(template, ids))


def class_logits(
    model: nn.Module, variables: Mapping[str, Any], text: TextInputs
) -> Float[Array, "B classes"]:
    """The logits of the head for texts [B, T], float32, without those of tokens."""
    return text_outputs(model, variables, text)["class_logits"].astype(jnp.float32)
