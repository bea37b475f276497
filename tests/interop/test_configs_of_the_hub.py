"""Whole configs as hubs have them, old ones too: what says nothing is passed over."""

import pytest

from fmjax.errors import UserError
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import find
from fmjax.interop.options import Options

LLAMA = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 32000,
}
BERT = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 30522,
}
# Every option of a config, which versions before 3 wrote.
DUMP = {
    "finetuning_task": None,
    "num_labels": 2,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "torchscript": False,
    "use_bfloat16": False,
}
CONFIGS = {
    "opt-125m": {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "attention_dropout": 0.0,
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "ffn_dim": 3072,
        "hidden_size": 768,
        "init_std": 0.02,
        "layerdrop": 0.0,
        "max_position_embeddings": 2048,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "prefix": "</s>",
        "vocab_size": 50272,
        "word_embed_proj_dim": 768,
    },
    "Qwen2.5-0.5B": LLAMA
    | {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "sliding_window": 32768,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "gpt2-medium": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "n_ctx": 1024,
        "n_embd": 1024,
        "n_head": 16,
        "n_layer": 24,
        "n_positions": 1024,
        "n_special": 0,
        "predict_special_tokens": True,
        "resid_pdrop": 0.1,
        "summary_first_dropout": 0.1,
        "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True}},
        "vocab_size": 50257,
    },
    "bert-base-multilingual": BERT
    | {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "type_vocab_size": 2,
    },
    "a dump of BERT": BERT
    | DUMP
    | {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
    "a dump of GPT-2": DUMP
    | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_ctx": 1024},
    "a dump of classes": BERT
    | DUMP
    | {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    "the first Llama": LLAMA
    | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_sequence_length": 2048,
        "pad_token_id": 0,
    },
    "deberta-v3-base": BERT
    | {
        "model_type": "deberta-v2",
        "layer_norm_eps": 1e-7,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "position_buckets": 256,
        "relative_attention": True,
        "share_att_key": True,
        "type_vocab_size": 0,
        "vocab_size": 128100,
    },
}


def fields(config):
    named = config.get("architectures", [None])[0]
    family = find(FAMILIES, config["model_type"], named)
    options = Options(config, "config.json")
    options.ignore("model_type", "architectures")
    return family.read(options, family.choose(named, set()))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_is_known(name):
    read = fields(CONFIGS[name])
    assert read["vocab_size"] == CONFIGS[name].get("vocab_size", 50257)
    assert read.get("num_classes") == (2 if "classes" in name else None)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("a dump of BERT", "pruned_heads", {"1": [0]}),
        ("a dump of GPT-2", "use_bfloat16", True),
        ("Qwen2.5-0.5B", "use_mrope", True),
    ],
)
def test_an_option_that_says_something_is_refused(name, option, value):
    with pytest.raises(UserError, match=rf"config\.json: {option} = .*; expected"):
        fields(CONFIGS[name] | {option: value})
