"""How many weights transformers' models of each decoder's size have."""

import torch
import transformers


def of_transformers(architecture, **options):
    """How many weights a model of transformers trains."""
    cls = getattr(transformers, architecture)
    with torch.device("meta"):
        model = cls(cls.config_class(**options))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def llama(
    layers, width, heads, mlp, vocabulary=32000, kv_heads=None, kind="Llama", **more
):
    return of_transformers(
        f"{kind}ForCausalLM",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        **more,
    )


def neox(layers, width, heads, vocabulary=50432):
    return of_transformers(
        "GPTNeoXForCausalLM",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=vocabulary,
    )


def falcon(layers, width, heads, **more):
    return of_transformers(
        "FalconForCausalLM",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        **more,
    )


def deepseek_v3():
    """Biases of experts are buffers there, one for each of 58 layers' experts."""
    return of_transformers("DeepseekV3ForCausalLM") + 58 * 256


GEMMA = {"kind": "Gemma", "head_dim": 256}
GEMMA3 = {"kind": "Gemma3", "head_dim": 256}
DECODERS = {
    "llama3_1_8b": lambda: llama(32, 4096, 32, 14336, 128256, 8),
    "llama3_2_1b": lambda: llama(
        16, 2048, 32, 8192, 128256, 8, tie_word_embeddings=True
    ),
    "llama3_2_3b": lambda: llama(
        28, 3072, 24, 8192, 128256, 8, tie_word_embeddings=True
    ),
    "gemma_2b": lambda: llama(18, 2048, 8, 16384, 256000, 1, **GEMMA),
    "gemma_7b": lambda: llama(28, 3072, 16, 24576, 256000, **GEMMA),
    "gemma3_1b": lambda: llama(26, 1152, 4, 6912, 262144, 1, **GEMMA3),
    "gemma3_4b": lambda: llama(34, 2560, 8, 10240, 262208, 4, **GEMMA3),
    "phi_1_5": lambda: llama(24, 2048, 32, 8192, 51200, kind="Phi"),
    "phi_2": lambda: llama(32, 2560, 32, 10240, 51200, kind="Phi"),
    "phi3_mini": lambda: llama(32, 3072, 32, 8192, 32064, kind="Phi3"),
    "phi4_mini": lambda: llama(
        32, 3072, 24, 8192, 200064, 8, "Phi3", tie_word_embeddings=True
    ),
    # Of the sizes of their first models.
    "qwen1_5_moe_a2_7b": lambda: of_transformers("Qwen2MoeForCausalLM"),
    "qwen3_30b_a3b": lambda: llama(
        48, 2048, 32, 6144, 151936, 4, "Qwen3Moe", head_dim=128
    ),
    "pythia_1b": lambda: neox(16, 2048, 8, 50304),
    "pythia_6_9b": lambda: neox(32, 4096, 32),
    "gpt_neox_20b": lambda: neox(44, 6144, 64),
    "gptj_6b": lambda: of_transformers("GPTJForCausalLM"),
    "gpt_neo_2_7b": lambda: of_transformers(
        "GPTNeoForCausalLM",
        num_layers=32,
        hidden_size=2560,
        num_heads=20,
        attention_types=[[["global", "local"], 16]],
    ),
    "olmo_7b": lambda: llama(32, 4096, 32, 11008, 50304, kind="Olmo"),
    "olmo2_7b": lambda: llama(32, 4096, 32, 11008, 100352, kind="Olmo2"),
    "olmo3_7b": lambda: llama(32, 4096, 32, 11008, 100278, kind="Olmo3"),
    "smollm3_3b": lambda: of_transformers("SmolLM3ForCausalLM"),
    "granite3_8b": lambda: llama(
        40, 4096, 32, 12800, 49155, 8, "Granite", tie_word_embeddings=True
    ),
    "starcoder2_3b": lambda: of_transformers("Starcoder2ForCausalLM"),
    "stablelm2_1_6b": lambda: llama(
        24, 2048, 32, 5632, 100352, kind="StableLm", use_qkv_bias=True
    ),
    "falcon_7b": lambda: falcon(32, 4544, 71),
    "falcon_40b": lambda: falcon(
        60, 8192, 128, num_kv_heads=8, new_decoder_architecture=True
    ),
    "command_r_35b": lambda: of_transformers("CohereForCausalLM"),
    "glm4_9b": lambda: of_transformers("Glm4ForCausalLM"),
    "gpt_oss_20b": lambda: of_transformers(
        "GptOssForCausalLM", num_hidden_layers=24, num_local_experts=32
    ),
    "gpt_oss_120b": lambda: of_transformers("GptOssForCausalLM"),
    "deepseek_v3": deepseek_v3,
    "opt_350m": lambda: of_transformers(
        "OPTForCausalLM",
        num_hidden_layers=24,
        hidden_size=1024,
        word_embed_proj_dim=512,
        num_attention_heads=16,
        ffn_dim=4096,
        do_layer_norm_before=False,
    ),
}  # fmt: skip
