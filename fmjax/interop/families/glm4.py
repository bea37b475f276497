"""GLM-4 0414 (GLM Team 2024)."""

from fmjax.interop.entries import option
from fmjax.interop.families.llama import (
    ATTENTION,
    BLOCK,
    DOWN,
    GATE_AND_UP,
    LAYER,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.rows import norm

GLM4 = family(
    "glm4",
    "Glm4",
    {"transformer.norm_position": "sandwich"},
    (
        *sizes(
            num_hidden_layers=40,
            num_key_value_heads=2,
            head_dim=128,
            intermediate_size=13696,
            max_position_embeddings=131072,
            rms_norm_eps=0.00000015625,
            vocab_size=151552,
        ),
        SILU,
        Rope(131072, fraction=0.5, interleaved=True),
        option("attention_bias", "transformer.qkv_bias", bool, True),
    ),
    (
        *norm(f"{BLOCK}/attention_norm", f"{LAYER}.input_layernorm"),
        *norm(f"{BLOCK}/attention_out_norm", f"{LAYER}.post_self_attn_layernorm"),
        *norm(f"{BLOCK}/mlp_norm", f"{LAYER}.post_attention_layernorm"),
        *norm(f"{BLOCK}/mlp_out_norm", f"{LAYER}.post_mlp_layernorm"),
        *ATTENTION,
        GATE_AND_UP,
        DOWN,
    ),
    heads="texts tokens",
)
