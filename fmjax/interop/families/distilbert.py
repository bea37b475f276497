"""DistilBERT (Sanh et al. 2019)."""

from fmjax.interop.entries import activation, constant, fixed, ignored, option
from fmjax.interop.families.bert import (
    MAX_LENGTH,
    POSITION_IDS,
    RENAMED,
    Labels,
    embeddings,
    heads,
    masked_head,
    token_architectures,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.rows import attention, feed_forward, linear, norm
from fmjax.models.language.bert import Bert
from fmjax.objectives.masked_lm import MaskedLM

_LAYER, _BLOCK = "distilbert.transformer.layer.{layer}", "stack/layers"

DISTILBERT = Family(
    model_type="distilbert",
    model=Bert,
    objective=MaskedLM,
    entries=(
        option("n_layers", "transformer.num_layers", int, 6),
        option("dim", "transformer.embed_dim", int, 768),
        option("n_heads", "transformer.num_heads", int, 12),
        option("hidden_dim", "transformer.mlp_dim", int, 3072),
        activation("activation", "transformer.activation", "gelu"),
        option("dropout", "transformer.dropout", float, 0.1),
        option("attention_dropout", "transformer.attention_dropout", float, 0.1),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 30522),
        MAX_LENGTH,
        fixed(
            {
                "transformer.norm_position": "post",
                "transformer.norm_epsilon": 1e-12,
                "num_token_types": 0,
            }
        ),
        constant("tie_word_embeddings", True),
        constant("tie_weights_", True),
        # Sinusoidal positions are a table in the files like learned ones; the others
        # are options of training.
        ignored("sinusoidal_pos_embds qa_dropout seq_classif_dropout"),
    ),
    rows=(
        *embeddings("distilbert"),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.attention",
            "q_lin k_lin v_lin",
            f"{_LAYER}.attention.out_lin",
        ),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.sa_layer_norm"),
        *feed_forward(f"{_BLOCK}/mlp", f"{_LAYER}.ffn", in_="lin1", out="lin2"),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.output_layer_norm"),
    ),
    architectures={
        "DistilBertForMaskedLM": Architecture(
            (heads(True),),
            masked_head("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        ),
        "DistilBertForSequenceClassification": Architecture(
            (heads(False, "relu"), Labels()),
            (
                *linear("pool", "pre_classifier"),
                *linear("classifier", "classifier"),
            ),
        ),
        **token_architectures("DistilBert"),
        "DistilBertModel": Architecture((heads(),), bare=True),
    },
    prefix="distilbert.",
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    constants=POSITION_IDS,
    renamed=RENAMED,
)
