"""Qwen 2 and 3 (Qwen Team 2024, 2025)."""

from fmjax.interop.entries import constant
from fmjax.interop.families.llama import (
    ATTENTION,
    BLOCK,
    FEED_FORWARD,
    LAYER,
    NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.rows import norm

_QK_NORMS = (
    *norm(f"{BLOCK}/attention/query_norm", f"{LAYER}.self_attn.q_norm"),
    *norm(f"{BLOCK}/attention/key_norm", f"{LAYER}.self_attn.k_norm"),
)
_QWEN = {
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "vocab_size": 151936,
}
QWEN2 = family(
    "qwen2",
    "Qwen2",
    {"transformer.qkv_bias": True},
    (
        *sizes(**_QWEN),
        SILU,
        Rope(32768),
        LayerTypes(32, "use_sliding_window", None),
        # In configs of Qwen 2.5.
        constant("use_mrope", False),
    ),
    (*NORMS, *ATTENTION, *FEED_FORWARD),
    heads=True,
)
QWEN3 = family(
    "qwen3",
    "Qwen3",
    {"transformer.qk_norm": True},
    (
        *sizes(**_QWEN, head_dim=128),
        SILU,
        Rope(32768),
        LayerTypes(32, "use_sliding_window", None),
        constant("attention_bias", False),
    ),
    (*NORMS, *ATTENTION, *_QK_NORMS, *FEED_FORWARD),
    heads=True,
)
