"""Qwen 2 and 3 (Qwen Team 2024, 2025)."""

from fmjax.interop.entries import constant
from fmjax.interop.families.llama import (
    ATTENTION,
    ATTENTION_BIAS,
    FEED_FORWARD,
    NORMS,
    QK_NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.families.windows import LayerTypes

_QWEN = {
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "vocab_size": 151936,
}
_WINDOWS = LayerTypes(
    32, lambda i, first: i < first, flag="use_sliding_window", first=28
)
QWEN2 = family(
    "qwen2",
    "Qwen2",
    {"transformer.qkv_bias": True},
    (
        *sizes(**_QWEN),
        SILU,
        Rope(32768),
        _WINDOWS,
        # In configs of Qwen 2.5.
        constant("use_mrope", False),
    ),
    (*NORMS, *ATTENTION, *FEED_FORWARD),
    heads="texts tokens answers",
    answers="transformer.",
)
QWEN3 = family(
    "qwen3",
    "Qwen3",
    {"transformer.qk_norm": True},
    (
        *sizes(**_QWEN, head_dim=128),
        SILU,
        Rope(32768),
        _WINDOWS,
        ATTENTION_BIAS,
    ),
    (*NORMS, *ATTENTION, *QK_NORMS, *FEED_FORWARD),
    heads="texts tokens answers",
    answers="transformer.",
)
