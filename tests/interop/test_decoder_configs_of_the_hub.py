"""Whole configs of decoders as hubs have them: what they say of the model is read."""

import pytest

from fmjax.interop import model_fields
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import find
from fmjax.interop.options import Options
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rope_scaling import Llama3Scaling, LongScaling, YarnScaling

# What nearly all say.
COMMON = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "use_cache": True,
}
SUMMARY = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}


def config(model_type, name, layers, width, heads, vocabulary, **more):
    sizes = {
        "architectures": [f"{name}ForCausalLM"],
        "hidden_size": width,
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
    }
    return COMMON | sizes | more


LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
YARN = {"beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
CONFIGS = {
    "Llama-3.2-1B": (
        config(
            *("llama", "Llama", 16, 2048, 32, 128256),
            head_dim=64,
            intermediate_size=8192,
            max_position_embeddings=131072,
            mlp_bias=False,
            num_key_value_heads=8,
            pretraining_tp=1,
            rms_norm_eps=1e-5,
            rope_scaling=LLAMA3,
            rope_theta=500000.0,
            tie_word_embeddings=True,
        ),
        {
            "rotary.theta": 500000.0,
            "rotary.scaling": Llama3Scaling(32.0, 1.0, 4.0, 8192),
            "tie_embeddings": True,
        },
    ),
    "opt-350m": (
        {
            "_remove_final_layer_norm": False,
            "activation_dropout": 0.0,
            "activation_function": "relu",
            "architectures": ["OPTForCausalLM"],
            "attention_dropout": 0.0,
            "do_layer_norm_before": False,
            "dropout": 0.1,
            "ffn_dim": 4096,
            "hidden_size": 1024,
            "init_std": 0.02,
            "layerdrop": 0.0,
            "max_position_embeddings": 2048,
            "model_type": "opt",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "vocab_size": 50272,
            "word_embed_proj_dim": 512,
        },
        {"embed_dim": 512, "norm_position": "post"},
    ),
    "gemma-2b": (
        config(
            *("gemma", "Gemma", 18, 2048, 8, 256000),
            head_dim=256,
            hidden_act="gelu",
            intermediate_size=16384,
            max_position_embeddings=8192,
            num_key_value_heads=1,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=10000.0,
        ),
        {"activation": "gelu_tanh", "embed_scale": True, "unit_offset_norm": True},
    ),
    "gemma-3-1b-pt": (
        config(
            *("gemma3_text", "Gemma3", 26, 1152, 4, 262144),
            attn_logit_softcapping=None,
            cache_implementation="hybrid",
            final_logit_softcapping=None,
            head_dim=256,
            hidden_activation="gelu_pytorch_tanh",
            intermediate_size=6912,
            max_position_embeddings=32768,
            num_key_value_heads=1,
            query_pre_attn_scalar=256,
            rms_norm_eps=1e-6,
            rope_local_base_freq=10000,
            rope_scaling=None,
            rope_theta=1000000,
            sliding_window=512,
            sliding_window_pattern=6,
        ),
        {
            "rotary.theta": 1e6,
            "rotary.local_theta": 1e4,
            "window": 512,
            "global_every": 6,
            "attention_softcap": None,
        },
    ),
    "phi-2": (
        config(
            *("phi", "Phi", 32, 2560, 32, 51200),
            embd_pdrop=0.0,
            hidden_act="gelu_new",
            intermediate_size=10240,
            layer_norm_eps=1e-5,
            max_position_embeddings=2048,
            num_key_value_heads=32,
            partial_rotary_factor=0.4,
            qk_layernorm=False,
            resid_pdrop=0.1,
            rope_scaling=None,
            rope_theta=10000.0,
            tie_word_embeddings=False,
        )
        | {"attention_bias": None},
        {"rotary.fraction": 0.4, "parallel": "norm", "head_bias": True, "dropout": 0.1},
    ),
    "Phi-3-mini-128k-instruct": (
        config(
            *("phi3", "Phi3", 32, 3072, 32, 32064),
            embd_pdrop=0.0,
            intermediate_size=8192,
            max_position_embeddings=131072,
            num_key_value_heads=32,
            original_max_position_embeddings=4096,
            resid_pdrop=0.0,
            rms_norm_eps=1e-5,
            rope_scaling={
                "long_factor": [1.5] * 48,
                "short_factor": [1.0] * 48,
                "type": "su",
            },
            rope_theta=10000.0,
            sliding_window=262144,
            tie_word_embeddings=False,
        ),
        {
            "rotary.scaling": LongScaling((1.0,) * 48, (1.5,) * 48, 4096, 32.0),
            "window": 262144,
        },
    ),
    "Qwen1.5-MoE-A2.7B": (
        config(
            *("qwen2_moe", "Qwen2Moe", 24, 2048, 16, 151936),
            decoder_sparse_step=1,
            intermediate_size=5632,
            max_position_embeddings=8192,
            max_window_layers=21,
            moe_intermediate_size=1408,
            norm_topk_prob=False,
            num_experts=60,
            num_experts_per_tok=4,
            num_key_value_heads=16,
            output_router_logits=False,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            router_aux_loss_coef=0.001,
            shared_expert_intermediate_size=5632,
            sliding_window=32768,
            tie_word_embeddings=False,
            use_sliding_window=False,
        )
        | {"attention_bias": None},
        {
            "mlp_dim": 1408,
            "window": None,
            "experts": Experts(
                60, 4, normalized=False, shared_dim=5632, shared_gate=True
            ),
        },
    ),
    "Qwen3-30B-A3B": (
        config(
            *("qwen3_moe", "Qwen3Moe", 48, 2048, 32, 151936),
            decoder_sparse_step=1,
            head_dim=128,
            intermediate_size=6144,
            max_position_embeddings=40960,
            max_window_layers=48,
            mlp_only_layers=[],
            moe_intermediate_size=768,
            norm_topk_prob=True,
            num_experts=128,
            num_experts_per_tok=8,
            num_key_value_heads=4,
            output_router_logits=False,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=1000000.0,
            router_aux_loss_coef=0.001,
            sliding_window=None,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
        {"mlp_dim": 768, "experts": Experts(128, 8, normalized=True)},
    ),
    "pythia-1b": (
        config(
            *("gpt_neox", "GPTNeoX", 16, 2048, 8, 50304),
            hidden_act="gelu",
            intermediate_size=8192,
            layer_norm_eps=1e-5,
            max_position_embeddings=2048,
            rotary_emb_base=10000,
            rotary_pct=0.25,
            tie_word_embeddings=False,
            use_parallel_residual=True,
        )
        | {"attention_bias": None},
        {"rotary.fraction": 0.25, "parallel": "norms", "qkv_bias": True},
    ),
    "gpt-j-6b": (
        SUMMARY
        | {
            "activation_function": "gelu_new",
            "architectures": ["GPTJForCausalLM"],
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "gradient_checkpointing": False,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5,
            "model_type": "gptj",
            "n_embd": 4096,
            "n_head": 16,
            "n_inner": None,
            "n_layer": 28,
            "n_positions": 2048,
            "resid_pdrop": 0.0,
            "rotary": True,
            "rotary_dim": 64,
            "scale_attn_weights": True,
            "tie_word_embeddings": False,
            "tokenizer_class": "GPT2Tokenizer",
            "vocab_size": 50400,
        },
        {"rotary.fraction": 0.25, "rotary.interleaved": True, "out_bias": False},
    ),
    "gpt-neo-1.3B": (
        SUMMARY
        | {
            "activation_function": "gelu_new",
            "architectures": ["GPTNeoForCausalLM"],
            "attention_dropout": 0,
            "attention_layers": ["global", "local"] * 12,
            "attention_types": [[["global", "local"], 12]],
            "embed_dropout": 0,
            "gradient_checkpointing": False,
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": None,
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neo",
            "num_heads": 16,
            "num_layers": 24,
            "resid_dropout": 0,
            "vocab_size": 50257,
            "window_size": 256,
        },
        {"window": 256, "global_layers": tuple(range(0, 24, 2))},
    ),
    "OLMo-7B-hf": (
        config(
            *("olmo", "Olmo", 32, 4096, 32, 50304),
            clip_qkv=None,
            intermediate_size=11008,
            max_position_embeddings=2048,
            num_key_value_heads=32,
            rope_scaling=None,
            rope_theta=10000.0,
            tie_word_embeddings=False,
        ),
        {"norm": "layernorm", "norm_weights": False, "qkv_clip": None},
    ),
    "Olmo-3-7B": (
        config(
            *("olmo3", "Olmo3", 32, 4096, 32, 100278),
            intermediate_size=11008,
            layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8,
            max_position_embeddings=65536,
            num_key_value_heads=32,
            rms_norm_eps=1e-6,
            rope_scaling=YARN
            | {
                "attention_factor": 1.2,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "yarn",
            },
            rope_theta=500000,
            sliding_window=4096,
            tie_word_embeddings=False,
        ),
        {
            "rotary.local_theta": 500000.0,
            "rotary.scaling": YarnScaling(8.0, 8192, attention_factor=1.2),
            "global_every": 4,
            "norm_position": "output",
        },
    ),
    "SmolLM3-3B": (
        config(
            *("smollm3", "SmolLM3", 36, 2048, 16, 128256),
            intermediate_size=11008,
            layer_types=["full_attention"] * 36,
            max_position_embeddings=65536,
            max_window_layers=28,
            mlp_bias=False,
            no_rope_layer_interval=4,
            no_rope_layers=[1, 1, 1, 0] * 9,
            num_key_value_heads=4,
            pretraining_tp=2,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=5000000.0,
            sliding_window=None,
            use_sliding_window=False,
        ),
        {"rotary.theta": 5e6, "rotary.skip_every": 4, "window": None},
    ),
    "granite-3.1-8b-base": (
        config(
            *("granite", "Granite", 40, 4096, 32, 49152),
            attention_multiplier=0.0078125,
            embedding_multiplier=12.0,
            intermediate_size=12800,
            logits_scaling=16.0,
            max_position_embeddings=131072,
            mlp_bias=False,
            num_key_value_heads=8,
            residual_multiplier=0.22,
            rms_norm_eps=1e-5,
            rope_scaling=None,
            rope_theta=10000000.0,
            tie_word_embeddings=True,
        ),
        {"multipliers.logits": 0.0625, "attention_scale": 0.0078125},
    ),
    "starcoder2-3b": (
        config(
            *("starcoder2", "Starcoder2", 30, 3072, 24, 49152),
            activation_function="gelu",
            attention_softmax_in_fp32=True,
            embedding_dropout=0.1,
            hidden_act="gelu_pytorch_tanh",
            intermediate_size=12288,
            layer_norm_epsilon=1e-5,
            max_position_embeddings=16384,
            mlp_type="default",
            norm_epsilon=1e-5,
            norm_type="layer_norm",
            num_key_value_heads=2,
            residual_dropout=0.1,
            rope_theta=999999.4420358813,
            scale_attention_softmax_in_fp32=True,
            scale_attn_weights=True,
            sliding_window=4096,
            use_bias=True,
        )
        | {"attention_bias": None},
        {"window": 4096, "mlp_bias": True, "dropout": 0.1},
    ),
    "stablelm-2-12b": (
        config(
            *("stablelm", "StableLm", 40, 5120, 32, 100352),
            hidden_dropout=0.0,
            intermediate_size=13824,
            layer_norm_eps=1e-5,
            max_position_embeddings=4096,
            num_key_value_heads=8,
            partial_rotary_factor=0.25,
            qk_layernorm=True,
            rope_scaling=None,
            rope_theta=10000,
            tie_word_embeddings=False,
            use_parallel_residual=True,
            use_qkv_bias=False,
        )
        | {"attention_bias": None},
        {"parallel": "norm", "qk_norm": "each_head", "rotary.fraction": 0.25},
    ),
    "falcon-7b": (
        config(
            *("falcon", "Falcon", 32, 4544, 71, 65024),
            alibi=False,
            apply_residual_connection_post_layernorm=False,
            bias=False,
            hidden_dropout=0.0,
            layer_norm_epsilon=1e-5,
            multi_query=True,
            new_decoder_architecture=False,
            parallel_attn=True,
        )
        | {"attention_bias": None, "hidden_act": None},
        {"num_kv_heads": 1, "parallel": "norm"},
    ),
    "falcon-40b": (
        config(
            *("falcon", "Falcon", 60, 8192, 128, 65024),
            alibi=False,
            bias=False,
            hidden_dropout=0.0,
            layer_norm_epsilon=1e-5,
            new_decoder_architecture=True,
            num_kv_heads=8,
            parallel_attn=True,
        )
        | {"attention_bias": None, "hidden_act": None},
        {"num_kv_heads": 8, "parallel": "norms"},
    ),
    "c4ai-command-r-v01": (
        config(
            *("cohere", "Cohere", 40, 8192, 64, 256000),
            intermediate_size=22528,
            layer_norm_eps=1e-5,
            logit_scale=0.0625,
            max_position_embeddings=8192,
            model_max_length=131072,
            num_key_value_heads=64,
            rope_theta=8000000.0,
            use_qk_norm=False,
        ),
        {"multipliers.logits": 0.0625, "rotary.interleaved": True},
    ),
    "GLM-4-9B-0414": (
        config(
            *("glm4", "Glm4", 40, 4096, 32, 151552),
            attention_bias=True,
            head_dim=128,
            intermediate_size=13696,
            max_position_embeddings=32768,
            num_key_value_heads=2,
            partial_rotary_factor=0.5,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            tie_word_embeddings=False,
        ),
        {"rotary.fraction": 0.5, "qkv_bias": True, "norm_position": "sandwich"},
    ),
    "gpt-oss-20b": (
        config(
            *("gpt_oss", "GptOss", 24, 2880, 64, 201088),
            attention_bias=True,
            experts_per_token=4,
            head_dim=64,
            initial_context_length=4096,
            intermediate_size=2880,
            layer_types=["sliding_attention", "full_attention"] * 12,
            max_position_embeddings=131072,
            num_experts_per_tok=4,
            num_key_value_heads=8,
            num_local_experts=32,
            output_router_logits=False,
            rms_norm_eps=1e-5,
            rope_scaling=YARN
            | {"factor": 32.0, "rope_type": "yarn", "truncate": False},
            rope_theta=150000,
            router_aux_loss_coef=0.9,
            sliding_window=128,
            swiglu_limit=7.0,
            tie_word_embeddings=False,
        ),
        {
            "rotary.scaling": YarnScaling(32.0, 4096, truncate=False),
            "attention_sinks": True,
            "global_every": 2,
            "experts": Experts(32, 4, normalized=True),
        },
    ),
    "DeepSeek-V3": (
        config(
            *("deepseek_v3", "DeepseekV3", 61, 7168, 128, 129280),
            aux_loss_alpha=0.001,
            ep_size=1,
            first_k_dense_replace=3,
            intermediate_size=18432,
            kv_lora_rank=512,
            max_position_embeddings=163840,
            moe_intermediate_size=2048,
            moe_layer_freq=1,
            n_group=8,
            n_routed_experts=256,
            n_shared_experts=1,
            norm_topk_prob=True,
            num_experts_per_tok=8,
            num_key_value_heads=128,
            num_nextn_predict_layers=1,
            pretraining_tp=1,
            q_lora_rank=1536,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            rms_norm_eps=1e-6,
            rope_scaling=YARN
            | {"factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "yarn"},
            rope_theta=10000,
            routed_scaling_factor=2.5,
            scoring_func="sigmoid",
            seq_aux=True,
            tie_word_embeddings=False,
            topk_group=4,
            topk_method="noaux_tc",
            v_head_dim=128,
        ),
        {
            "head_dim": 192,
            "mlp_dim": 2048,
            "latent.rank": 512,
            "rotary.scaling": YarnScaling(40.0, 4096, attention_factor=1.0),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_config_says_is_read(name):
    told, expected = CONFIGS[name]
    # COMMON has options that some families do not.
    told = {key: value for key, value in told.items() if value is not None}
    family = find(FAMILIES, told["model_type"], told["architectures"][0])
    options = Options(told, "config.json")
    options.ignore("model_type", "architectures")
    fields = family.read(options, family.choose(told["architectures"][0], set()))
    model = model_fields.build(family.model, fields)
    for path, value in expected.items():
        owner, _, field = path.rpartition(".")
        found = model if hasattr(model, path) else model.transformer
        found = getattr(found, owner) if owner else found
        assert getattr(found, field) == value, path
    # And what is written from it is read as the same.
    _, architecture, written = family.write(model)
    again = Options(written, "config.json")
    back = model_fields.build(family.model, family.read(again, architecture))
    assert model_fields.values_of(back) == model_fields.values_of(model)
