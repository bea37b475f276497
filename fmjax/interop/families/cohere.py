"""Command R (Cohere 2024)."""

from fmjax.interop.entries import ignored, option, part
from fmjax.interop.families.llama import (
    ATTENTION,
    ATTENTION_BIAS,
    BLOCK,
    FEED_FORWARD,
    LAYER,
    QK_NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.families.stablelm import EACH_HEAD
from fmjax.interop.rows import norm
from fmjax.models.layers.multipliers import Multipliers

COHERE = family(
    "cohere",
    "Cohere",
    {"transformer.norm": "layernorm", "transformer.parallel": "norm"},
    (
        *sizes(
            epsilon="layer_norm_eps",
            num_hidden_layers=40,
            hidden_size=8192,
            num_attention_heads=64,
            intermediate_size=22528,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            vocab_size=256000,
        ),
        SILU,
        Rope(8192, 500000.0, interleaved=True),
        part(
            "transformer.multipliers",
            Multipliers,
            {"logit_scale": ("logits", float, 0.0625)},
        ),
        option("use_qk_norm", "transformer.qk_norm", bool, False, to_field=EACH_HEAD),
        ATTENTION_BIAS,
        # Of the tokenizer, in Cohere's configs.
        ignored("model_max_length"),
    ),
    (
        *norm(f"{BLOCK}/attention_norm", f"{LAYER}.input_layernorm"),
        *ATTENTION,
        *QK_NORMS,
        *FEED_FORWARD,
    ),
    tied=True,
)
