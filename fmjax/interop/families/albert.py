"""ALBERT (Lan et al. 2020): one layer for all, and narrow embeddings."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values, constant, fixed, ignored
from fmjax.interop.families.bert import (
    MAX_LENGTH,
    POSITION_IDS,
    Labels,
    embeddings,
    heads,
    masked_head,
    sizes,
    token_architectures,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import attention, feed_forward, linear, norm
from fmjax.models.language.bert import Bert
from fmjax.objectives.masked_lm import MaskedLM


class EmbeddingSize:
    """The width of the embeddings, which are projected to another width."""

    fields = ("embed_dim",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        width = options.take("embedding_size", int, 128)
        if width == options.peek("hidden_size", 4096):
            # There is a projection even then, which the model here has not.
            options.refuse("embedding_size", width, "another width than hidden_size")
        return {"embed_dim": width}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        width = values["embed_dim"]
        if width == values["transformer.embed_dim"]:
            raise UserError(
                f"embed_dim = {width}; expected another width than that of the "
                "transformer."
            )
        return {"embedding_size": width}


_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
_BLOCK = "stack/shared_layer"
_MASKED = masked_head("predictions.dense", "predictions.LayerNorm", "predictions.bias")
_POOL = linear("pool", "albert.pooler")

ALBERT = Family(
    model_type="albert",
    model=Bert,
    objective=MaskedLM,
    entries=(
        *sizes(
            "transformer",
            hidden_size=4096,
            num_attention_heads=64,
            intermediate_size=16384,
            hidden_act="gelu_new",
            dropout=0.0,
            vocab_size=30000,
        ),
        MAX_LENGTH,
        EmbeddingSize(),
        fixed({"transformer.share_layers": True}),
        constant("num_hidden_groups", 1),
        constant("inner_group_num", 1),
        # Options of training, and of old configs, which no code reads.
        ignored(
            "classifier_dropout_prob down_scale_factor gap_size net_structure_type"
        ),
        ignored("num_memory_blocks"),
    ),
    rows=(
        *embeddings("albert"),
        *linear("stack/project", "albert.encoder.embedding_hidden_mapping_in"),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.attention",
            "query key value",
            f"{_LAYER}.attention.dense",
        ),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.attention.LayerNorm"),
        *feed_forward(f"{_BLOCK}/mlp", _LAYER, in_="ffn", out="ffn_output"),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.full_layer_layer_norm"),
    ),
    architectures={
        "AlbertForMaskedLM": Architecture((heads(True),), _MASKED),
        "AlbertForPreTraining": Architecture(
            (heads(True, "tanh", True),),
            _MASKED + _POOL + linear("sentence_head", "sop_classifier.classifier"),
        ),
        "AlbertForSequenceClassification": Architecture(
            (heads(False, "tanh"), Labels()),
            _POOL + linear("classifier", "classifier"),
        ),
        **token_architectures("Albert"),
        "AlbertModel": Architecture((heads(False, "tanh"),), _POOL, bare=True),
    },
    prefix="albert.",
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    constants=POSITION_IDS,
)
