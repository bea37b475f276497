"""Small models of each family of decoders, with sizes that nothing divides by chance.

Names with a comma are variants, which run with --slow alone.
"""

from parity.case import HEADS, Case

ALL = " ".join(HEADS)
VOCAB, LENGTH = 203, 28
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
GPT2 = dict(
    vocab_size=VOCAB, n_positions=LENGTH, n_embd=30, n_layer=2, n_head=5, **ENDS
)
OPT = dict(
    vocab_size=VOCAB,
    hidden_size=30,
    num_hidden_layers=2,
    num_attention_heads=5,
    ffn_dim=44,
    max_position_embeddings=LENGTH,
    **ENDS,
)
LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=36,
    intermediate_size=50,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
    **ENDS,
)
# Six heads: no power of two, so that slopes of a second sequence are among them.
BLOOM = dict(vocab_size=VOCAB, hidden_size=42, n_layer=2, n_head=6, **ENDS)
# Another number of heads than half of the features, which turn in pairs.
NEOX = {
    **{name: value for name, value in LLAMA.items() if "key_value" not in name},
    "num_attention_heads": 3,
}
FALCON = dict(
    vocab_size=VOCAB,
    hidden_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
    ffn_hidden_size=50,
    **ENDS,
)
MOE = dict(num_experts=5, num_experts_per_tok=3, moe_intermediate_size=22)
DEEPSEEK = {
    **LLAMA,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "moe_intermediate_size": 22,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 14,
    "q_lora_rank": 18,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 8,
    "routed_scaling_factor": 1.5,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 7.0],
}

DECODERS = {
    "gpt2": Case("GPT2LMHeadModel", GPT2, heads=ALL),
    "gpt2, untied, gelu, inner": Case(
        "GPT2LMHeadModel",
        {
            **GPT2,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "n_inner": 44,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "gpt2, scores by layer": Case(
        "GPT2LMHeadModel",
        {
            **GPT2,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "scale_attn_weights": False,
        },
    ),
    "opt": Case("OPTForCausalLM", OPT, heads="texts answers"),
    "opt, post-norm, untied": Case(
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "tie_word_embeddings": False},
    ),
    # OPT 350M, and Galactica.
    "opt, post-norm, projections": Case(
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 14},
        heads="texts answers",
    ),
    "opt, no biases, no weights of norms": Case(
        "OPTForCausalLM",
        {
            **OPT,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
        },
    ),
    "bloom": Case("BloomForCausalLM", BLOOM, heads=ALL),
    "llama": Case("LlamaForCausalLM", LLAMA, heads=ALL),
    "llama, wide heads": Case(
        "LlamaForCausalLM",
        {
            **LLAMA,
            "tie_word_embeddings": True,
            "head_dim": 10,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama, all heads": Case(
        "LlamaForCausalLM", {**LLAMA, "num_key_value_heads": None}
    ),
    "llama, biases": Case(
        "LlamaForCausalLM",
        {**LLAMA, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": Case(
        "MistralForCausalLM", {**LLAMA, "sliding_window": 5}, heads=ALL, alike=True
    ),
    "mistral, whole": Case("MistralForCausalLM", {**LLAMA, "sliding_window": None}),
    "qwen2": Case("Qwen2ForCausalLM", LLAMA, heads=ALL, alike=True),
    "qwen2, window": Case(
        "Qwen2ForCausalLM",
        {
            **LLAMA,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": Case("Qwen3ForCausalLM", {**LLAMA, "head_dim": 10}, heads=ALL),
    "qwen3, every second window": Case(
        "Qwen3ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma": Case(
        "GemmaForCausalLM", {**LLAMA, "head_dim": 10}, heads="texts tokens", alike=True
    ),
    "gemma2": Case(
        "Gemma2ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "head_dim": 10,
            "sliding_window": 4,
            "query_pre_attn_scalar": 14,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        heads="texts tokens",
    ),
    "gemma2, no caps": Case(
        "Gemma2ForCausalLM",
        {
            **LLAMA,
            "head_dim": 10,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3_text": Case(
        "Gemma3ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "head_dim": 10,
            "sliding_window": 4,
            "query_pre_attn_scalar": 14,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 4.0,
                    "rope_theta": 900.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            },
        },
        heads="texts",
        own_cache=True,
        prefix="Gemma3Text",
    ),
    "mixtral": Case(
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 5, "num_experts_per_tok": 3},
        heads=ALL,
    ),
    "mixtral, window": Case(
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 3, "sliding_window": 5},
    ),
    "phi3": Case(
        "Phi3ForCausalLM",
        {
            **LLAMA,
            "sliding_window": 9,
            "max_position_embeddings": 2 * LENGTH,
            "original_max_position_embeddings": 8,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
        },
        heads="texts tokens",
    ),
    "phi3, plain": Case("Phi3ForCausalLM", LLAMA),
    "phi": Case(
        "PhiForCausalLM",
        {**NEOX, "num_key_value_heads": 1},
        heads="texts tokens",
        alike=True,
    ),
    "qwen2_moe": Case(
        "Qwen2MoeForCausalLM",
        {**LLAMA, **MOE, "shared_expert_intermediate_size": 26},
        heads=ALL,
    ),
    "qwen2_moe, first dense": Case(
        "Qwen2MoeForCausalLM",
        {
            **LLAMA,
            **MOE,
            "num_hidden_layers": 3,
            "shared_expert_intermediate_size": 26,
            "mlp_only_layers": [0],
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen3_moe": Case(
        "Qwen3MoeForCausalLM", {**LLAMA, **MOE, "head_dim": 10}, heads=ALL, alike=True
    ),
    "gpt_neox": Case(
        "GPTNeoXForCausalLM",
        {**NEOX, "rope_parameters": {"partial_rotary_factor": 0.5}},
        heads=ALL,
    ),
    "gpt_neox, one after the other": Case(
        "GPTNeoXForCausalLM",
        {
            **NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "partial_rotary_factor": 0.5,
                "rope_type": "linear",
                "factor": 4.0,
            },
        },
    ),
    "gptj": Case(
        "GPTJForCausalLM",
        {
            **{name: v for name, v in GPT2.items() if name != "n_head"},
            "n_head": 3,
            "rotary_dim": 4,
        },
        heads="texts answers",
    ),
    "gpt_neo": Case(
        "GPTNeoForCausalLM",
        dict(
            vocab_size=VOCAB,
            hidden_size=30,
            num_layers=3,
            num_heads=5,
            intermediate_size=44,
            window_size=4,
            attention_types=[[["global", "local"], 1], [["global"], 1]],
            max_position_embeddings=LENGTH,
            **ENDS,
        ),
        heads=ALL,
        alike=True,
    ),
    "olmo": Case(
        "OlmoForCausalLM", {**LLAMA, "clip_qkv": 0.5}, heads="texts", alike=True
    ),
    "olmo2": Case("Olmo2ForCausalLM", LLAMA, heads="texts"),
    "olmo3": Case(
        "Olmo3ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        heads="texts",
        alike=True,
    ),
    "smollm3": Case(
        "SmolLM3ForCausalLM",
        {**LLAMA, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
        heads=ALL,
        alike=True,
        own_cache=True,
    ),
    "smollm3, biases, windows": Case(
        "SmolLM3ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "granite": Case(
        "GraniteForCausalLM",
        {
            **LLAMA,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 1.5,
        },
        alike=True,
    ),
    "starcoder2": Case(
        "Starcoder2ForCausalLM",
        {**LLAMA, "sliding_window": 9},
        heads="texts tokens",
        alike=True,
    ),
    "starcoder2, no biases": Case(
        "Starcoder2ForCausalLM", {**LLAMA, "use_bias": False}
    ),
    "stablelm": Case(
        "StableLmForCausalLM",
        {
            **NEOX,
            "num_key_value_heads": 1,
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0},
        },
        heads="texts tokens",
        alike=True,
    ),
    "stablelm, parallel": Case(
        "StableLmForCausalLM",
        {
            **NEOX,
            "num_key_value_heads": 3,
            "use_parallel_residual": True,
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0},
        },
    ),
    "falcon": Case(
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        heads=ALL,
    ),
    "falcon, one norm": Case(
        "FalconForCausalLM",
        {
            **FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "falcon, one key": Case("FalconForCausalLM", FALCON),
    "falcon, alibi": Case(
        "FalconForCausalLM",
        {
            **FALCON,
            "alibi": True,
            # The eager one adds the penalty twice.
            "attn_implementation": "sdpa",
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "cohere": Case("CohereForCausalLM", {**LLAMA, "logit_scale": 1.3}),
    "cohere, norms of heads": Case(
        "CohereForCausalLM",
        {**LLAMA, "use_qk_norm": True, "attention_bias": True, "logit_scale": 1.3},
    ),
    "glm4": Case(
        "Glm4ForCausalLM",
        {**LLAMA, "head_dim": 12, "rope_parameters": {"partial_rotary_factor": 0.5}},
        heads="texts tokens",
        alike=True,
    ),
    "gpt_oss": Case(
        "GptOssForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 2,
            "head_dim": 10,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 5,
            "rope_parameters": {**YARN, "truncate": False},
        },
        heads="texts tokens",
    ),
    "deepseek_v3": Case(
        "DeepseekV3ForCausalLM",
        {
            **DEEPSEEK,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        heads="texts tokens",
        own_cache=True,
    ),
    "deepseek_v3, whole queries": Case(
        "DeepseekV3ForCausalLM",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "rope_interleave": False,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
        },
    ),
}
