"""Phi 1 and 2 (Li et al. 2023), Phi 3 and 4 (Abdin et al. 2024)."""

from fmjax.interop.entries import activation, constant, ignored, option
from fmjax.interop.families.decoder_head import WITH_BIAS
from fmjax.interop.families.llama import (
    BLOCK,
    DOWN,
    GATE_AND_UP,
    LAYER,
    NORMS,
    SILU,
    family,
    sizes,
)
from fmjax.interop.families.rope import Rope
from fmjax.interop.rows import Joined, attention, attention_out, feed_forward, norm

_DROPOUTS = (
    option("resid_pdrop", "transformer.dropout", float, 0.0),
    # Of embeddings, which is that of layers here.
    ignored("embd_pdrop"),
)
PHI = family(
    "phi",
    "Phi",
    {
        "transformer.norm": "layernorm",
        "transformer.bias": True,
        "transformer.gated_mlp": False,
        "transformer.parallel": "norm",
    },
    (
        *sizes(
            epsilon="layer_norm_eps",
            without=("head_dim",),
            num_hidden_layers=24,
            hidden_size=2048,
            intermediate_size=8192,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            vocab_size=51200,
        ),
        activation("hidden_act", "transformer.activation", "gelu_new"),
        Rope(2048, fraction=0.5),
        constant("qk_layernorm", False),
        *_DROPOUTS,
    ),
    (
        *norm(f"{BLOCK}/attention_norm", f"{LAYER}.input_layernorm"),
        *attention(
            f"{BLOCK}/attention",
            f"{LAYER}.self_attn",
            "q_proj k_proj v_proj",
            f"{LAYER}.self_attn.dense",
        ),
        *feed_forward(f"{BLOCK}/mlp", f"{LAYER}.mlp", in_="fc1", out="fc2"),
    ),
    final="model.final_layernorm",
    head=WITH_BIAS,
    heads="texts tokens",
)
PHI3 = family(
    "phi3",
    "Phi3",
    {},
    (
        *sizes(
            hidden_size=3072,
            intermediate_size=8192,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            vocab_size=32064,
        ),
        SILU,
        Rope(4096, fraction=1.0, beside=True),
        option("sliding_window", "transformer.window", int, None, null=True),
        *_DROPOUTS,
        constant("attention_bias", False),
    ),
    (
        *NORMS,
        Joined(
            " ".join(f"{BLOCK}/attention/{name}" for name in ("query", "key", "value")),
            f"{LAYER}.self_attn.qkv_proj.weight",
            ("d h k -> h k d", "d g k -> g k d", "d g k -> g k d"),
        ),
        *attention_out(f"{BLOCK}/attention", f"{LAYER}.self_attn.o_proj"),
        GATE_AND_UP,
        DOWN,
    ),
    heads="texts tokens",
)
