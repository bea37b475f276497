"""Mixtral (Jiang et al. 2024)."""

from fmjax.interop.entries import constant, ignored, option, part
from fmjax.interop.families.llama import (
    ATTENTION,
    BLOCK,
    LAYER,
    NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.rows import LINEAR, Row
from fmjax.models.layers.mixture_of_experts import Experts

_EXPERTS = f"{LAYER}.block_sparse_moe"
MIXTRAL = family(
    "mixtral",
    "Mixtral",
    {},
    (
        *sizes(
            num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5
        ),
        SILU,
        Rope(131072, 1e6),
        option("sliding_window", "transformer.window", int, None),
        part(
            "transformer.experts",
            Experts,
            {
                "num_local_experts": ("number", int, 8),
                "num_experts_per_tok": ("per_token", int, 2),
            },
        ),
        constant("router_jitter_noise", 0.0),
        # Options of training.
        ignored("output_router_logits router_aux_loss_coef"),
    ),
    (
        *NORMS,
        *ATTENTION,
        Row(f"{BLOCK}/mlp/router", f"{_EXPERTS}.gate.weight", LINEAR),
        Row(f"{BLOCK}/mlp/gate", f"{_EXPERTS}.experts.{{expert}}.w1.weight", LINEAR),
        Row(f"{BLOCK}/mlp/out", f"{_EXPERTS}.experts.{{expert}}.w2.weight", LINEAR),
        Row(f"{BLOCK}/mlp/in", f"{_EXPERTS}.experts.{{expert}}.w3.weight", LINEAR),
    ),
    heads="texts tokens answers",
)
