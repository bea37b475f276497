"""ModernBERT (Warner et al. 2024)."""

from typing import Any

from fmjax.interop.entries import Values, activation, constant, fixed, ignored, option
from fmjax.interop.families.bert import EXACT_GELU, NO_TYPES, Labels
from fmjax.interop.families.rope import RopeByWindow
from fmjax.interop.families.windows import MOST_LAYERS, LayerTypes
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import LINEAR, Row, attention_out, linear, norm
from fmjax.models.language.bert import Bert
from fmjax.objectives.masked_lm import MaskedLM

_KINDS = ("full_attention", "sliding_attention")
_THETAS = ("global_rope_theta", "local_rope_theta")


class Windows:
    """Layers with and without a window."""

    fields = LayerTypes.fields

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        width = options.take("local_attention", int, 128)
        every = options.take("global_attn_every_n_layers", int, 3)
        if every < 1:
            options.refuse("global_attn_every_n_layers", every, "at least 1")
        layers = options.peek("num_hidden_layers", 22)
        if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
            options.refuse("num_hidden_layers", layers, f"1 to {MOST_LAYERS}")
        kinds = options.take("layer_types", list, None)
        if kinds is None:
            kinds = [_KINDS[i % every != 0] for i in range(layers)]
        if len(kinds) != layers or any(kind not in _KINDS for kind in kinds):
            expected = f"{' or '.join(_KINDS)} for each layer"
            options.refuse("layer_types", kinds, expected)
        whole = [kind == _KINDS[0] for kind in kinds]
        # Theirs is the farthest distance on either side, ours the first beyond.
        window = None if all(whole) else width // 2 + 1
        return LayerTypes.fields_of(window, whole)

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        window = values[self.fields[0]]
        whole = LayerTypes.whole_layers(values)
        period = next((i for i, each in enumerate(whole) if i and each), len(whole))
        written: dict[str, Any] = {
            "layer_types": [_KINDS[not each] for each in whole],
            "local_attention": 0 if window is None else 2 * (window - 1),
        }
        if whole == [i % period == 0 for i in range(len(whole))]:
            written["global_attn_every_n_layers"] = period
        return written


class Positions(RopeByWindow):
    """Rotary positions of both kinds of layers."""

    def write(self, values: Values) -> dict[str, Any]:
        """The options, in the formats of versions 4 and 5; see `Entry`."""
        written = super().write(values)
        rotary = values["transformer.rotary"]
        thetas = (rotary.theta, rotary.local_theta or rotary.theta)
        return written | dict(zip(_THETAS, thetas))


_LAYER, _BLOCK = "model.layers.{layer}", "stack/layers"
_QKV = " ".join(f"{_BLOCK}/attention/{name}" for name in ("query", "key", "value"))
_POOLED = {"pooler": "gelu", "pooler_norm": True, "language_head": False}
_HEAD = constant("classifier_activation", "gelu")
_UNREAD = ignored("classifier_activation classifier_pooling")

# Heads of all tokens do not pool, whatever classifier_pooling says.
_PER_TOKEN = (
    fixed({"token_transform": "gelu", "language_head": False, "pooler": "none"}),
    _HEAD,
    ignored("classifier_pooling"),
)


def _token_rows(head: str) -> tuple[Row, ...]:
    """Rows of a head of all tokens; `head` is its name in `TokenHeads`."""
    return (
        *linear("token_heads/transform", "head.dense"),
        *norm("token_heads/norm", "head.norm"),
        *linear(f"token_heads/{head}", "classifier"),
    )


MODERNBERT = Family(
    model_type="modernbert",
    model=Bert,
    objective=MaskedLM,
    entries=(
        option("num_hidden_layers", "transformer.num_layers", int, 22),
        option("hidden_size", "transformer.embed_dim", int, 768),
        option("num_attention_heads", "transformer.num_heads", int, 12),
        option("intermediate_size", "transformer.mlp_dim", int, 1152),
        activation("hidden_activation", "transformer.activation", "gelu"),
        option("norm_eps", "transformer.norm_epsilon", float, 1e-5),
        option("embedding_dropout", "transformer.dropout", float, 0.0),
        option("attention_dropout", "transformer.attention_dropout", float, 0.0),
        option("mlp_dropout", "transformer.mlp_dropout", float, 0.0),
        option("initializer_range", "transformer.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, 50368),
        option("max_position_embeddings", "max_length", int, 8192),
        Positions(
            Windows(),
            _THETAS[1],
            10000.0,
            8192,
            160000.0,
            names=(_THETAS[0], "partial_rotary_factor"),
            scaled=True,
        ),
        NO_TYPES,
        fixed(
            {
                "transformer.bias": False,
                "transformer.gated_mlp": True,
                "transformer.first_norm": False,
                "positions": "none",
                "head_bias": False,
                "next_sentence": False,
            }
        ),
        *(
            constant(f"{name}_bias", False)
            for name in ("norm", "attention", "mlp", "classifier")
        ),
        constant("decoder_bias", True),
        constant("tie_word_embeddings", True),
        # Options of training, of other implementations of the same, and some that no
        # code reads.
        ignored("initializer_cutoff_factor classifier_dropout cls_token_id"),
        ignored("deterministic_flash_attn sparse_prediction sparse_pred_ignore_index"),
        ignored("reference_compile repad_logits_with_grad"),
        ignored("layer_norm_eps position_embedding_type"),
    ),
    rows=(
        Row("tokens/table", "model.embeddings.tok_embeddings.weight"),
        *norm("inputs/norm", "model.embeddings.norm"),
        *(
            row._replace(first=1)
            for row in norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.attn_norm")
        ),
        Row(_QKV, f"{_LAYER}.attn.Wqkv.weight", "q d h k -> (q h k) d"),
        *attention_out(f"{_BLOCK}/attention", f"{_LAYER}.attn.Wo"),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.mlp_norm"),
        Row(
            f"{_BLOCK}/mlp/gate {_BLOCK}/mlp/in",
            f"{_LAYER}.mlp.Wi.weight",
            "two i o -> (two o) i",
        ),
        Row(f"{_BLOCK}/mlp/out", f"{_LAYER}.mlp.Wo.weight", LINEAR),
        *norm("stack/final_norm", "model.final_norm"),
    ),
    architectures={
        "ModernBertForMaskedLM": Architecture(
            (
                fixed({"language_head": True, "pooler": "none"}),
                EXACT_GELU,
                _HEAD,
                ignored("classifier_pooling"),
            ),
            (
                *linear("masked_head/transform", "head.dense"),
                *norm("masked_head/norm", "head.norm"),
                Row("masked_head/vocabulary/bias", "decoder.bias"),
            ),
        ),
        "ModernBertForSequenceClassification": Architecture(
            (
                fixed(_POOLED),
                _HEAD,
                option(
                    "classifier_pooling",
                    "pooling",
                    str,
                    "cls",
                    to_field={"cls": "first", "mean": "mean"},
                ),
                Labels(),
            ),
            (
                *linear("pool", "head.dense"),
                *norm("pool_norm", "head.norm"),
                *linear("classifier", "classifier"),
            ),
        ),
        "ModernBertForTokenClassification": Architecture(
            (*_PER_TOKEN, Labels("token_classes")), _token_rows("classes")
        ),
        "ModernBertForQuestionAnswering": Architecture(
            (*_PER_TOKEN, fixed({"spans": True})), _token_rows("spans")
        ),
        "ModernBertModel": Architecture(
            (fixed({"language_head": False, "pooler": "none"}), _UNREAD), bare=True
        ),
    },
    prefix="model.",
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
