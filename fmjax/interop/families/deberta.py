"""DeBERTa-v2 and v3 (He et al. 2021, 2023)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values, constant, fixed, ignored, option
from fmjax.interop.families.bert import (
    MAX_LENGTH,
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
from fmjax.interop.rows import Row, linear, norm
from fmjax.models.language.bert import Bert
from fmjax.models.layers.disentangled import Disentangled
from fmjax.objectives.masked_lm import MaskedLM

_PARTS = {"c2p", "p2c"}
_POOLERS = {"gelu": "gelu", "tanh": "tanh"}


class Distances:
    """The relative positions: one row for each distance, or logarithmic buckets."""

    fields = ("transformer.position_bias",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        farthest = options.take("max_relative_positions", int, -1)
        if farthest < 1:
            farthest = options.peek("max_position_embeddings", 512)
        buckets = options.take("position_buckets", int, -1)
        given = (buckets, farthest) if buckets > 0 else (farthest, None)
        return {self.fields[0]: Disentangled(*given)}

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        found = values[self.fields[0]]
        if not isinstance(found, Disentangled):
            raise UserError(f"{self.fields[0]} = {found!r}; expected @disentangled().")
        given = (found.buckets, found.max_distance)
        if found.max_distance is None:
            given = (-1, found.buckets)
        return dict(zip(("position_buckets", "max_relative_positions"), given))


class Parts:
    """The terms of the attention scores besides content to content; both are needed."""

    fields = ()

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option, a list or joined by bars; see `Entry`."""
        given = options.peek("pos_att_type", None)
        options.ignore("pos_att_type")
        parts = given.split("|") if isinstance(given, str) else given
        if not isinstance(parts, list) or {str(p).strip() for p in parts} != _PARTS:
            options.refuse("pos_att_type", given, "p2c and c2p")
        return {}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        del values
        return {"pos_att_type": sorted(_PARTS)}


class HeadWidth:
    """The width of a head, which some configs contain."""

    fields = ()

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        width = options.peek("hidden_size", 1536)
        width //= options.peek("num_attention_heads", 24)
        options.require("attention_head_size", width)
        return {}

    def write(self, values: Values) -> dict[str, Any]:
        """No option; see `Entry`."""
        del values
        return {}


_CLASSIFIER = (
    *linear("pool", "pooler.dense"),
    *linear("classifier", "classifier"),
)
DEBERTA = Family(
    model_type="deberta-v2",
    model=Bert,
    objective=MaskedLM,
    entries=(
        *sizes(
            "transformer",
            num_hidden_layers=24,
            hidden_size=1536,
            num_attention_heads=24,
            intermediate_size=6144,
            layer_norm_eps=1e-7,
            vocab_size=128100,
            type_vocab_size=0,
        ),
        MAX_LENGTH,
        Distances(),
        Parts(),
        HeadWidth(),
        option(
            "position_biased_input",
            "positions",
            bool,
            True,
            to_field={True: "learned", False: "none"},
        ),
        constant("relative_attention", True, default=False),
        constant("share_att_key", True, default=False),
        constant("norm_rel_ebd", "layer_norm", default="none"),
        # Whether the names of the head's tensors are the old ones.
        constant("legacy", True, False),
        # Options of training.
        ignored("pooler_dropout cls_dropout"),
    ),
    rows=(
        *encoder("deberta", "stack", "query_proj key_proj value_proj"),
        Row("stack/relative_vectors", "deberta.encoder.rel_embeddings.weight"),
        *norm("stack/relative_norm", "deberta.encoder.LayerNorm"),
    ),
    architectures={
        "DebertaV2ForMaskedLM": Architecture(
            (heads(True), ignored("pooler_hidden_act pooler_hidden_size")),
            masked_head(
                "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm",
                "cls.predictions.bias",
            ),
        ),
        "DebertaV2ForSequenceClassification": Architecture(
            (
                fixed({"language_head": False, "next_sentence": False}),
                option("pooler_hidden_act", "pooler", str, "gelu", to_field=_POOLERS),
                ignored("pooler_hidden_size"),
                Labels(),
            ),
            _CLASSIFIER,
        ),
        **token_architectures(
            "DebertaV2", None, ignored("pooler_hidden_act pooler_hidden_size")
        ),
        "DebertaV2Model": Architecture(
            (heads(), ignored("pooler_hidden_act pooler_hidden_size")), bare=True
        ),
    },
    prefix="deberta.",
    copies={
        "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight"
    },
    constants=POSITION_IDS,
    # DeBERTa-v3's head for replaced token detection.
    foreign=r"mask_predictions\.(dense|LayerNorm|classifier)\.(weight|bias)",
    renamed=(
        *RENAMED,
        (
            r"^lm_predictions\.lm_head\.(dense|LayerNorm)",
            r"cls.predictions.transform.\1",
        ),
        (r"^lm_predictions\.lm_head\.bias", "cls.predictions.bias"),
    ),
)
