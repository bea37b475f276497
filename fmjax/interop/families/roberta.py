"""RoBERTa (Liu et al. 2019)."""

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
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import linear
from fmjax.models.language.bert import Bert
from fmjax.objectives.masked_lm import MaskedLM


class PaddingOffset:
    """RoBERTa's positions, which start after the id of padding."""

    fields = ("position_padding_id", "position_offset", "max_length")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        padding = options.take("pad_token_id", int, 1)
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
        return {"pad_token_id": padding, "max_position_embeddings": length + offset}


ROBERTA = Family(
    model_type="roberta",
    model=Bert,
    objective=MaskedLM,
    entries=(*sizes("transformer", vocab_size=50265), PaddingOffset()),
    rows=encoder("roberta", "stack", "query key value"),
    architectures={
        "RobertaForMaskedLM": Architecture(
            (heads(True), EXACT_GELU),
            masked_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
        ),
        "RobertaForSequenceClassification": Architecture(
            (heads(False, "tanh"), Labels()),
            (
                *linear("pool", "classifier.dense"),
                *linear("classifier", "classifier.out_proj"),
            ),
        ),
        "RobertaModel": Architecture(
            (heads(False, "tanh"),), linear("pool", "roberta.pooler.dense"), bare=True
        ),
    },
    prefix="roberta.",
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    constants=POSITION_IDS,
    renamed=RENAMED,
)
