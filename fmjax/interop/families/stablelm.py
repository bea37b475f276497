"""StableLM 2 (Bellagente et al. 2024) and 3B-4E1T (Tow et al. 2023)."""

from fmjax.interop.entries import option
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
from fmjax.interop.rows import Row

# Whether each head has norms of its own over its queries and keys.
EACH_HEAD = {False: False, True: "each_head"}

STABLELM = family(
    "stablelm",
    "StableLm",
    {"transformer.norm": "layernorm", "transformer.norm_bias": True},
    (
        *sizes(
            epsilon="layer_norm_eps",
            without=("head_dim",),
            hidden_size=2560,
            num_key_value_heads=32,
            intermediate_size=6912,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            vocab_size=50304,
        ),
        SILU,
        Rope(4096, fraction=0.25),
        option("use_qkv_bias", "transformer.qkv_bias", bool, False),
        option("qk_layernorm", "transformer.qk_norm", bool, False, to_field=EACH_HEAD),
        option(
            "use_parallel_residual",
            "transformer.parallel",
            bool,
            False,
            to_field={False: None, True: "norm"},
            null=True,
        ),
        option("hidden_dropout", "transformer.dropout", float, 0.0),
    ),
    (
        *NORMS,
        *ATTENTION,
        # A tensor for each head; {expert} counts the first axis.
        *(
            Row(
                f"{BLOCK}/attention/{name}_norm/scale",
                f"{LAYER}.self_attn.{name[0]}_layernorm.norms.{{expert}}.weight",
            )
            for name in ("query", "key")
        ),
        *FEED_FORWARD,
    ),
    heads="texts tokens",
)
