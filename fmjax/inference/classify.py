"""Classifying texts with the head of a model: `run.classify`."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Texts are padded to a power of two, at least this, so that few shapes are compiled.
_SHORTEST, _ROWS = 16, 32

TextOrPair = str | tuple[str, str]


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
    if tokenizer is None:
        raise UserError("This run has no tokenizer, so it cannot read texts.")
    if isinstance(texts, str):
        raise UserError("texts is one text; expected a list of texts.")
    rows = [_encode(run, tokenizer, text, i, truncate) for i, text in enumerate(texts)]
    logits = np.zeros((len(rows), model.num_classes), np.float32)
    for which, inputs in _batches(rows, tokenizer.pad_id or 0, model.max_length):
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


Row = tuple[list[int], list[int]]


def _encode(
    run: Any, tokenizer: Tokenizer, text: TextOrPair, number: int, truncate: bool
) -> Row:
    """Ids and token types of a text with its special tokens."""
    parts = (text,) if isinstance(text, str) else text
    if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"texts[{number}]: expected a text, or a pair of texts.")
    ids = [list(tokenizer.encode(part)) for part in parts]
    found, types = _wrap(tokenizer, ids)
    longest = run.model.max_length
    if len(found) > longest and truncate:
        last = max(0, len(ids[-1]) - (len(found) - longest))
        found, types = _wrap(tokenizer, [*ids[:-1], ids[-1][:last]])
    if not found:
        raise UserError(f"texts[{number}] has no tokens; expected some text.")
    if len(found) > longest:
        raise UserError(
            f"texts[{number}] has {len(found)} tokens, more than "
            f"{run.model.gin_name}.max_length = {longest}; truncate = True cuts it."
        )
    return found, types


def _wrap(tokenizer: Tokenizer, ids: list[list[int]]) -> Row:
    """The ids of one or two texts with special tokens around them."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.wrap(*ids)
    whole = [i for part in ids for i in part]
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    whole = before + whole + after
    return whole, [0] * len(whole)


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


def _batches(
    rows: list[Row], padding: int, longest: int
) -> Iterator[tuple[list[int], dict[str, Int[np.ndarray, "B T"]]]]:
    """Yields texts of similar lengths, padded: their numbers and the arrays."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(order), _ROWS):
        which = order[start : start + _ROWS]
        needed = max(len(rows[i][0]) for i in which)
        length = min(longest, max(_SHORTEST, 1 << (needed - 1).bit_length()))
        count = _ROWS if len(order) > _ROWS else len(which)
        tokens = np.full((count, length), padding, np.int32)
        types = np.zeros((count, length), np.int32)
        mask = np.zeros((count, length), bool)
        mask[len(which) :, 0] = True  # Rows that fill the batch have a token.
        for row, i in enumerate(which):
            ids, kinds = rows[i]
            tokens[row, : len(ids)], types[row, : len(ids)] = ids, kinds
            mask[row, : len(ids)] = True
        arrays = {"tokens": tokens, "token_types": types, "padding_mask": mask}
        yield which, arrays
