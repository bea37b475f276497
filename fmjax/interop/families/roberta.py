"""RoBERTa (Liu et al. 2019), and XLM-R and CamemBERT, which are RoBERTa too."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values
from fmjax.interop.families.bert import (
    EXACT_GELU,
    POSITION_IDS,
    RENAMED,
    Labels,
    encoder,
    heads,
    masked_head,
    sizes,
    token_architectures,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import linear
from fmjax.models.language.bert import Bert
from fmjax.objectives.masked_lm import MaskedLM


class PaddingOffset:
    """RoBERTa's positions, which start after the id of padding."""

    fields = ("position_padding_id", "position_offset", "max_length")

    def __init__(self, padding: int | None = None):
        """Sets the id of padding, if a family has one whatever its pad_token_id is."""
        self._padding = padding

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        padding = options.take("pad_token_id", int, 1)
        padding = padding if self._padding is None else self._padding
        rows = options.take("max_position_embeddings", int, 512)
        return dict(zip(self.fields, (padding, padding + 1, rows - padding - 1)))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        padding, offset, length = (values[field] for field in self.fields)
        if padding is None or offset != padding + 1:
            raise UserError(
                f"position_padding_id = {padding}, position_offset = {offset}: "
                "expected the id of padding, and an offset of one more."
            )
        if self._padding not in (None, padding):
            raise UserError(
                f"position_padding_id = {padding}; expected {self._padding}."
            )
        return {"pad_token_id": padding, "max_position_embeddings": length + offset}


HEAD = masked_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
CLASSIFIER = (
    *linear("pool", "classifier.dense"),
    *linear("classifier", "classifier.out_proj"),
)


def copies(name: str) -> dict[str, str]:
    """The tensors of the head that are others too; `name` is the encoder's prefix."""
    return {
        "lm_head.decoder.weight": f"{name}.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }


def _family(model_type: str, classes: str, vocab_size: int) -> Family:
    """RoBERTa under another name, as transformers has it for other vocabularies.

    Args:
      model_type: model_type of config.json.
      classes: prefix of the names of its classes.
      vocab_size: transformers' default.
    """
    return Family(
        model_type=model_type,
        model=Bert,
        objective=MaskedLM,
        entries=(*sizes("transformer", vocab_size=vocab_size), PaddingOffset()),
        rows=encoder("roberta", "stack", "query key value"),
        architectures={
            f"{classes}ForMaskedLM": Architecture((heads(True), EXACT_GELU), HEAD),
            f"{classes}ForSequenceClassification": Architecture(
                (heads(False, "tanh"), Labels()), CLASSIFIER
            ),
            **token_architectures(classes),
            f"{classes}Model": Architecture(
                (heads(False, "tanh"),),
                linear("pool", "roberta.pooler.dense"),
                bare=True,
            ),
        },
        prefix="roberta.",
        copies=copies("roberta"),
        constants=POSITION_IDS,
        renamed=RENAMED,
    )


ROBERTA = _family("roberta", "Roberta", 50265)
XLM_ROBERTA = _family("xlm-roberta", "XLMRoberta", 30522)
CAMEMBERT = _family("camembert", "Camembert", 30522)
