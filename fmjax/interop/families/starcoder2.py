"""StarCoder 2 (Lozhkov et al. 2024)."""

from fmjax.interop.entries import activation, constant, ignored, option
from fmjax.interop.families.llama import (
    ATTENTION,
    BLOCK,
    LAYER,
    NORMS,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.rows import feed_forward

STARCODER2 = family(
    "starcoder2",
    "Starcoder2",
    {
        "transformer.norm": "layernorm",
        "transformer.norm_bias": True,
        "transformer.gated_mlp": False,
    },
    (
        *sizes(
            epsilon="norm_epsilon",
            num_hidden_layers=30,
            hidden_size=3072,
            num_attention_heads=24,
            num_key_value_heads=2,
            intermediate_size=12288,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            vocab_size=49152,
        ),
        activation("hidden_act", "transformer.activation", "gelu_pytorch_tanh"),
        Rope(4096),
        option("sliding_window", "transformer.window", int, None, null=True),
        option(
            "use_bias",
            "transformer.qkv_bias transformer.out_bias transformer.mlp_bias",
            bool,
            True,
        ),
        option("residual_dropout", "transformer.dropout", float, 0.0),
        option("embedding_dropout", "transformer.dropout", float, 0.0),
        # In BigCode's configs; transformers reads none of them.
        constant("mlp_type", "default"),
        constant("norm_type", "layer_norm"),
        constant("scale_attn_weights", True),
        ignored("activation_function layer_norm_epsilon"),
        ignored("attention_softmax_in_fp32 scale_attention_softmax_in_fp32"),
    ),
    (
        *NORMS,
        *ATTENTION,
        *feed_forward(f"{BLOCK}/mlp", f"{LAYER}.mlp", in_="c_fc", out="c_proj"),
    ),
    tied=True,
    heads="texts tokens",
)
