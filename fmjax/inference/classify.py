"""Classifying texts with the head of a model: `run.classify`."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.text_template import text_template
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError
from fmjax.inference.text_rows import TextOrPair, TextRow, batches, text_rows

_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Classified:
    """What a model says of texts.

    Attributes:
      logits: one row for each text.
      labels: names of the classes; "LABEL_0", … if they have none.
    """

    logits: Float[np.ndarray, "N classes"]
    labels: tuple[str, ...]

    @property
    def probabilities(self) -> Float[np.ndarray, "N classes"]:
        """Of classes that exclude each other: the softmax of the logits."""
        shifted = self.logits - self.logits.max(1, keepdims=True)
        return np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)

    @property
    def names(self) -> list[str]:
        """The most probable class of each text."""
        return [self.labels[i] for i in self.logits.argmax(1)]

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


def classify(
    run: Any, texts: Sequence[TextOrPair], *, truncate: bool = False
) -> Classified:
    """Classifies texts, or pairs of texts.

    Encoders read their pooled vector, decoders the last token; encoder-decoders read a
    text on both sides (Lewis et al. 2020). Special tokens are those of the tokenizer.

    Args:
      run: what `fmjax.load` returns, of a model with num_classes.
      texts: the texts, or pairs of them.
      truncate: whether to cut what is longer than the model's max_length; of a pair,
        the second text.

    Raises:
      UserError: the model has no such head, the run no tokenizer, a text is empty or
        too long, or the model has too little memory.
    """
    model, tokenizer = run.model, run.tokenizer
    of_texts = getattr(model, "text_arguments", {})
    if not getattr(model, "num_classes", None) or not of_texts:
        raise UserError(
            f"@{model.gin_name}() has no head that classifies texts; expected a model "
            "with num_classes, such as an imported *ForSequenceClassification."
        )
    rows = text_rows(model, tokenizer, texts, partial(_wrap, tokenizer), truncate)
    logits = np.zeros((len(rows), model.num_classes), np.float32)
    size, padding = min(_ROWS, len(rows)), tokenizer.pad_id or 0
    for which, inputs in batches(rows, size, model.max_length, padding):
        if "text" not in of_texts:
            inputs = _on_both_sides(inputs, model.start_id)
        elif "token_types" not in of_texts["text"]:
            del inputs["token_types"]
        found = run(**inputs)["class_logits"]
        logits[which] = np.asarray(found, np.float32)[: len(which)]
    labels = run.config.labels
    if len(labels) != model.num_classes:
        labels = tuple(f"LABEL_{i}" for i in range(model.num_classes))
    return Classified(logits, labels)


def _wrap(tokenizer: Tokenizer, ids: Sequence[list[int]]) -> TextRow:
    """As rows of labelled texts are made for training."""
    template = text_template(tokenizer, len(ids))
    return TextRow(*special_template.fill(template, ids))


def _on_both_sides(inputs: dict[str, np.ndarray], start_id: int) -> dict:
    """The arrays of an encoder-decoder; the decoder's tokens behind `start_id`."""
    segment_ids = inputs["padding_mask"].astype(np.int32)
    shifted = np.roll(inputs["tokens"], 1, 1)
    shifted[:, 0] = start_id
    return {
        "encoder_tokens": inputs["tokens"],
        "encoder_segment_ids": segment_ids,
        "decoder_tokens": shifted,
        "decoder_segment_ids": segment_ids,
    }
