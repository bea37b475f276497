"""Gemma 2 (Gemma Team 2024)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values, activation, constant, ignored, option
from fmjax.interop.families.llama import (
    ATTENTION,
    BLOCK,
    FEED_FORWARD,
    LAYER,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.options import Options
from fmjax.interop.rows import norm


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


GEMMA2 = family(
    "gemma2",
    "Gemma2",
    {
        "transformer.norm_position": "sandwich",
        "transformer.unit_offset_norm": True,
        "embed_scale": True,
    },
    (
        *sizes(
            num_hidden_layers=26,
            hidden_size=2304,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            intermediate_size=9216,
            max_position_embeddings=8192,
            vocab_size=256000,
        ),
        activation("hidden_activation", "transformer.activation", "gelu_pytorch_tanh"),
        # Older configs have both; transformers reads only hidden_activation.
        ignored("hidden_act"),
        Rope(8192),
        LayerTypes(26, None, 2),
        QueryScale(),
        option(
            "attn_logit_softcapping",
            "transformer.attention_softcap",
            float,
            50.0,
            null=True,
        ),
        option("final_logit_softcapping", "logits_softcap", float, 30.0, null=True),
        constant("attention_bias", False),
        constant("use_bidirectional_attention", None, False),
    ),
    (
        *norm(f"{BLOCK}/attention_norm", f"{LAYER}.input_layernorm"),
        *norm(f"{BLOCK}/attention_out_norm", f"{LAYER}.post_attention_layernorm"),
        *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.pre_feedforward_layernorm"),
        *norm(f"{BLOCK}/mlp_out_norm", f"{LAYER}.post_feedforward_layernorm"),
        *ATTENTION,
        *FEED_FORWARD,
    ),
    tied=True,
    heads=True,
)
