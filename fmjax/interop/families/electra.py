"""ELECTRA (Clark et al. 2020): its discriminator, generator and encoder."""

from fmjax.interop.entries import Entry, fixed, ignored, option
from fmjax.interop.families.bert import (
    EXACT_GELU,
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
from fmjax.interop.rows import linear
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.replaced_token_detection import ReplacedTokenDetection


def _electra(owner: str) -> tuple[Entry, ...]:
    return (
        *sizes(owner, hidden_size=256, num_attention_heads=4, intermediate_size=1024),
        MAX_LENGTH,
        option("embedding_size", "embed_dim", int, 128),
        # Options of a head that is not supported.
        ignored("summary_type summary_use_proj summary_activation"),
        ignored("summary_last_dropout"),
    )


ELECTRA = Family(
    model_type="electra",
    model=Electra,
    objective=ReplacedTokenDetection,
    entries=(*_electra("discriminator"), fixed({"generator": None})),
    rows=(
        *encoder("electra", "discriminator_stack", "query key value"),
        *linear("discriminator_stack/project", "electra.embeddings_project"),
    ),
    architectures={
        "ElectraForPreTraining": Architecture(
            rows=(
                *linear("detect", "discriminator_predictions.dense"),
                *linear("detect_out", "discriminator_predictions.dense_prediction"),
            )
        )
    },
    prefix="electra.",
    constants=POSITION_IDS,
    renamed=RENAMED,
    without=("generator",),
)

# ELECTRA's generator and its fine-tuned forms are encoders like BERT.
ELECTRA_ENCODER = Family(
    model_type="electra",
    model=Bert,
    objective=MaskedLM,
    entries=_electra("transformer"),
    rows=(
        *encoder("electra", "stack", "query key value"),
        *linear("stack/project", "electra.embeddings_project"),
    ),
    architectures={
        "ElectraForMaskedLM": Architecture(
            (heads(True), EXACT_GELU),
            masked_head(
                "generator_predictions.dense",
                "generator_predictions.LayerNorm",
                "generator_lm_head.bias",
            ),
        ),
        "ElectraForSequenceClassification": Architecture(
            (heads(False, "gelu"), Labels()),
            (
                *linear("pool", "classifier.dense"),
                *linear("classifier", "classifier.out_proj"),
            ),
        ),
        **token_architectures("Electra"),
        "ElectraModel": Architecture((heads(),), bare=True),
    },
    prefix="electra.",
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    constants=POSITION_IDS,
    renamed=RENAMED,
)
