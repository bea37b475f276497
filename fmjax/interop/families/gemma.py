"""Gemma 1 to 3 (Gemma Team 2024, 2025)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values, activation, constant, ignored, option
from fmjax.interop.families.llama import (
    ATTENTION,
    ATTENTION_BIAS,
    FEED_FORWARD,
    NORMS,
    QK_NORMS,
    SANDWICH,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope, RopeByWindow
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.options import Options


class QueryScale:
    """Gemma's scale of attention scores, 1 / sqrt(query_pre_attn_scalar)."""

    fields = ("transformer.attention_scale",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        return {self.fields[0]: options.take("query_pre_attn_scalar", int, 256) ** -0.5}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        scale = values[self.fields[0]]
        scalar = values["transformer.head_dim"] if scale is None else round(scale**-2)
        if scale is not None and scalar**-0.5 != scale:
            raise UserError(f"{self.fields[0]} = {scale}; expected 1 / sqrt(n).")
        return {"query_pre_attn_scalar": scalar}


_SIZES = {
    "num_hidden_layers": 26,
    "hidden_size": 2304,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "vocab_size": 256000,
}
_SHARED = {"transformer.unit_offset_norm": True, "embed_scale": True}
_ACTIVATION = activation(
    "hidden_activation", "transformer.activation", "gelu_pytorch_tanh"
)
# Older configs have both; transformers reads only hidden_activation.
_OTHER_NAME = ignored("hidden_act")
_CAUSAL = constant("use_bidirectional_attention", None, False)


def _softcaps(scores: float | None, logits: float | None):
    return (
        option(
            "attn_logit_softcapping",
            "transformer.attention_softcap",
            float,
            scores,
            null=True,
        ),
        option("final_logit_softcapping", "logits_softcap", float, logits, null=True),
    )


GEMMA = family(
    "gemma",
    "Gemma",
    _SHARED,
    (
        *sizes(
            num_hidden_layers=28,
            hidden_size=3072,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=256,
            intermediate_size=24576,
            max_position_embeddings=8192,
            vocab_size=256000,
        ),
        # Its first configs say gelu and mean the approximation, as transformers knows.
        option(
            "hidden_act",
            "transformer.activation",
            str,
            "gelu_pytorch_tanh",
            to_field={"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"},
        ),
        ignored("hidden_activation"),
        Rope(8192),
        ATTENTION_BIAS,
        _CAUSAL,
    ),
    (*NORMS, *ATTENTION, *FEED_FORWARD),
    tied=True,
    heads="texts tokens",
)
GEMMA2 = family(
    "gemma2",
    "Gemma2",
    _SHARED | {"transformer.norm_position": "sandwich"},
    (
        *sizes(**_SIZES),
        _ACTIVATION,
        _OTHER_NAME,
        Rope(8192),
        LayerTypes(26, lambda i, _: (i + 1) % 2 == 0),
        QueryScale(),
        *_softcaps(50.0, 30.0),
        ATTENTION_BIAS,
        _CAUSAL,
    ),
    (*SANDWICH, *ATTENTION, *FEED_FORWARD),
    tied=True,
    heads="texts tokens",
)
GEMMA3 = family(
    "gemma3_text",
    "Gemma3",
    _SHARED | {"transformer.norm_position": "sandwich", "transformer.qk_norm": True},
    (
        *sizes(**_SIZES | {"max_position_embeddings": 131072, "vocab_size": 262208}),
        _ACTIVATION,
        _OTHER_NAME,
        RopeByWindow(
            LayerTypes(
                26,
                lambda i, period: (i + 1) % period == 0,
                period=("sliding_window_pattern", 6),
            ),
            "rope_local_base_freq",
            10000.0,
            131072,
            1000000.0,
        ),
        QueryScale(),
        *_softcaps(None, None),
        ATTENTION_BIAS,
        _CAUSAL,
    ),
    (*SANDWICH, *ATTENTION, *QK_NORMS, *FEED_FORWARD),
    tied=True,
    bare="Gemma3TextModel",
    heads="texts",
)
