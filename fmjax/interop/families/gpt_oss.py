"""gpt-oss (OpenAI 2025)."""

from fmjax.interop.entries import constant, ignored, option, part
from fmjax.interop.families.llama import (
    ATTENTION,
    BLOCK,
    LAYER,
    NORMS,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.rows import LINEAR, Row
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rope_scaling import YarnScaling

_MLP, _EXPERTS = f"{BLOCK}/mlp", f"{LAYER}.mlp.experts"
GPT_OSS = family(
    "gpt_oss",
    "GptOss",
    {
        "transformer.activation": "clamped_swiglu",
        "transformer.attention_sinks": True,
        "transformer.mlp_bias": True,
    },
    (
        *sizes(
            num_hidden_layers=36,
            hidden_size=2880,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=64,
            intermediate_size=2880,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            vocab_size=201088,
        ),
        constant("hidden_act", "silu"),
        constant("swiglu_alpha", 1.702),
        constant("swiglu_limit", 7.0),
        Rope(
            131072,
            150000.0,
            scaling=YarnScaling(32.0, 4096, 32.0, 1.0, truncate=False),
        ),
        LayerTypes(36, lambda i, _: (i + 1) % 2 == 0, window=128),
        option(
            "attention_bias", "transformer.qkv_bias transformer.out_bias", bool, True
        ),
        part(
            "transformer.experts",
            Experts,
            {
                "num_local_experts": ("number", int, 128),
                "num_experts_per_tok": ("per_token", int, 4),
            },
            {"normalized": True},
        ),
        # Other names in OpenAI's configs, and options of training.
        ignored("experts_per_token initial_context_length"),
        ignored("output_router_logits router_aux_loss_coef"),
    ),
    (
        *NORMS,
        *ATTENTION,
        Row(f"{BLOCK}/attention/sinks", f"{LAYER}.self_attn.sinks"),
        Row(f"{_MLP}/router", f"{LAYER}.mlp.router.weight", LINEAR),
        Row(f"{_MLP}/router_bias", f"{LAYER}.mlp.router.bias"),
        # Columns of gate and first projection alternate.
        Row(
            f"{_MLP}/gate {_MLP}/in",
            f"{_EXPERTS}.gate_up_proj",
            "p e i o -> e i (o p)",
        ),
        Row(
            f"{_MLP}/gate_bias {_MLP}/in_bias",
            f"{_EXPERTS}.gate_up_proj_bias",
            "p e o -> e (o p)",
        ),
        Row(f"{_MLP}/out", f"{_EXPERTS}.down_proj"),
        Row(f"{_MLP}/out_bias", f"{_EXPERTS}.down_proj_bias"),
    ),
    heads="texts tokens",
)
