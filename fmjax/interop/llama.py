"""Hugging Face's Llama: its options, and the names of its weights."""

import numpy as np

from fmjax.interop.options import Options
from fmjax.interop.weights import Source
from fmjax.models.gpt import GPT
from fmjax.models.transformer import TransformerConfig

PREFIX = "model."
CONSTANTS = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def build(options: Options) -> GPT:
    """The model that a config.json of model_type llama describes."""
    options.require("attention_bias", False)
    options.require("mlp_bias", False)
    options.require("pretraining_tp", 1, None)
    return GPT(
        TransformerConfig(
            num_layers=options.take("num_hidden_layers", int, 32),
            embed_dim=options.take("hidden_size", int, 4096),
            num_heads=options.take("num_attention_heads", int, 32),
            num_kv_heads=options.take("num_key_value_heads", int, None),
            head_dim=options.take("head_dim", int, None),
            mlp_dim=options.take("intermediate_size", int, 11008),
            norm="rmsnorm",
            norm_epsilon=options.take("rms_norm_eps", float, 1e-6),
            activation=options.take_activation("hidden_act", "silu"),
            gated_mlp=True,
            bias=False,
            rope_theta=_rope_theta(options),
            attention_dropout=options.take("attention_dropout", float, 0.0),
            init_std=options.take("initializer_range", float, 0.02),
        ),
        vocab_size=options.take("vocab_size", int, 32000),
        max_length=options.take("max_position_embeddings", int, 2048),
        positions="none",
        tie_embeddings=options.take("tie_word_embeddings", bool, False),
    )


def _rope_theta(options: Options) -> float:
    """The base of plain rotary positions, which versions 4 and 5 spell apart."""
    theta = options.take("rope_theta", float, 10000.0)
    options.require("partial_rotary_factor", 1.0, None)
    for name in ("rope_scaling", "rope_parameters"):
        if (inside := options.take_options(name)) is None:
            continue
        inside.require("rope_type", "default")
        inside.require("type", "default")
        inside.require("partial_rotary_factor", 1.0, None)
        theta = inside.take("rope_theta", float, theta)
        inside.finish()
    return theta


def sources(model: GPT) -> dict[str, Source]:
    """Where each parameter comes from; Llama's matrices are [outputs, inputs]."""
    c = model.transformer
    D, F, K = c.embed_dim, c.mlp_width, c.head_width
    H, G, V = c.num_heads, c.kv_heads, model.vocab_size
    layer, block = "layers.{layer}", "stack/layers"

    def projection(heads: int):
        return (heads * K, D), lambda w: w.T.reshape(D, heads, K)

    table = {
        "tokens/table": Source("embed_tokens.weight", (V, D)),
        "stack/final_norm/scale": Source("norm.weight", (D,)),
        f"{block}/attention_norm/scale": Source(
            f"{layer}.input_layernorm.weight", (D,)
        ),
        f"{block}/mlp_norm/scale": Source(
            f"{layer}.post_attention_layernorm.weight", (D,)
        ),
        f"{block}/attention/query": Source(
            f"{layer}.self_attn.q_proj.weight", *projection(H)
        ),
        f"{block}/attention/key": Source(
            f"{layer}.self_attn.k_proj.weight", *projection(G)
        ),
        f"{block}/attention/value": Source(
            f"{layer}.self_attn.v_proj.weight", *projection(G)
        ),
        f"{block}/attention/out": Source(
            f"{layer}.self_attn.o_proj.weight",
            (D, H * K),
            lambda w: w.T.reshape(H, K, D),
        ),
        f"{block}/mlp/gate": Source(
            f"{layer}.mlp.gate_proj.weight", (F, D), np.transpose
        ),
        f"{block}/mlp/in": Source(f"{layer}.mlp.up_proj.weight", (F, D), np.transpose),
        f"{block}/mlp/out": Source(
            f"{layer}.mlp.down_proj.weight", (D, F), np.transpose
        ),
    }
    if not model.tie_embeddings:
        table["language_head/kernel"] = Source("lm_head.weight", (V, D), np.transpose)
    return table
