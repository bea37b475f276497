"""OLMo 1 to 3 (Groeneveld et al. 2024; OLMo Team 2024, 2025)."""

from fmjax.interop.entries import option
from fmjax.interop.families.llama import (
    ATTENTION,
    ATTENTION_BIAS,
    BLOCK,
    FEED_FORWARD,
    LAYER,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope, RopeByWindow
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.rows import Row, norm

_SIZES = {
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50304,
}
OLMO = family(
    "olmo",
    "Olmo",
    {
        "transformer.norm": "layernorm",
        "transformer.norm_weights": False,
        "transformer.norm_epsilon": 1e-5,
    },
    (
        *sizes(**_SIZES, without=("rms_norm_eps",)),
        SILU,
        Rope(2048),
        ATTENTION_BIAS,
        option("clip_qkv", "transformer.qkv_clip", float, None, null=True),
    ),
    (*ATTENTION, *FEED_FORWARD),
    heads="texts",
)
_OUTPUT_NORMS = {
    "transformer.norm_position": "output",
    "transformer.qk_norm": "all_heads",
}
_ROWS = (
    *norm(f"{BLOCK}/attention_out_norm", f"{LAYER}.post_attention_layernorm"),
    *norm(f"{BLOCK}/mlp_out_norm", f"{LAYER}.post_feedforward_layernorm"),
    *ATTENTION,
    *(
        Row(
            f"{BLOCK}/attention/{name}_norm/scale",
            f"{LAYER}.self_attn.{name[0]}_norm.weight",
            "h k -> (h k)",
        )
        for name in ("query", "key")
    ),
    *FEED_FORWARD,
)
OLMO2 = family(
    "olmo2",
    "Olmo2",
    _OUTPUT_NORMS,
    (*sizes(**_SIZES), SILU, Rope(2048), ATTENTION_BIAS),
    _ROWS,
    heads="texts",
)
OLMO3 = family(
    "olmo3",
    "Olmo3",
    _OUTPUT_NORMS,
    (
        *sizes(**_SIZES),
        SILU,
        RopeByWindow(
            LayerTypes(32, lambda i, _: (i + 1) % 4 == 0),
            "rope_theta",
            500000.0,
            2048,
            500000.0,
        ),
        ATTENTION_BIAS,
    ),
    _ROWS,
    heads="texts",
)
