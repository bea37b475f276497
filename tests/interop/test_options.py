"""Options of config.json that are not supported are named, in every family."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fmjax.errors import UserError
from fmjax.interop.containers.folder import read_folder
from fmjax.interop.export import describe
from fmjax.interop.families import FAMILIES
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.options import Options
from fmjax.interop.saved_model import read_model
from fmjax.interop.tensor_files import TensorFiles
from fmjax.models.language.bert import Bert
from fmjax.models.layers.transformer_config import TransformerConfig

DEBERTA = {
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "c2p|p2c",
}


def refused(folder, model_type, options, message):
    (folder / "config.json").write_text(
        json.dumps({"model_type": model_type} | options)
    )
    save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        read_model(folder, TensorFiles(folder, read_folder(folder)))


@pytest.mark.parametrize(
    "family", FAMILIES, ids=lambda f: f"{f.model_type}-{f.model.gin_name}"
)
def test_an_option_that_nobody_knows_is_named(tmp_path, family):
    named = {"architectures": [next(iter(family.architectures))]}
    more = DEBERTA if family.model_type == "deberta-v2" else {}
    refused(
        tmp_path,
        family.model_type,
        named | more | {"no_such_option": 1},
        "no_such_option = 1",
    )


@pytest.mark.parametrize("model_type", dict.fromkeys(f.model_type for f in FAMILIES))
def test_an_architecture_that_nobody_knows_is_named(tmp_path, model_type):
    refused(
        tmp_path,
        model_type,
        {"architectures": ["XForQuestionAnswering"]},
        "XForQuestionAnswering.*expected one of",
    )


@pytest.mark.parametrize(
    ("model_type", "option", "value"),
    [
        ("opt", "_remove_final_layer_norm", True),
        ("opt", "layerdrop", 0.1),
        ("bloom", "apply_residual_connection_post_layernorm", True),
        ("bloom", "slow_but_exact", True),
        ("mistral", "rope_scaling", {"rope_type": "mrope", "factor": 4.0}),
        ("mistral", "layer_types", ["full_attention"]),
        ("qwen2", "rope_parameters", {"rope_type": "mrope", "factor": 2.0}),
        ("qwen2", "layer_types", ["chunked_attention"] * 32),
        ("gemma2", "use_bidirectional_attention", True),
        ("mixtral", "router_jitter_noise", 0.1),
        ("gemma2", "layer_types", ["full_attention"] * 25),
        ("gemma3_text", "sliding_window_pattern", 0),
        ("phi", "qk_layernorm", True),
        ("phi3", "rope_scaling", {"type": "longrope", "short_factor": [1.0]}),
        ("qwen2_moe", "mlp_only_layers", [1]),
        ("qwen3_moe", "decoder_sparse_step", 2),
        ("gptj", "rotary_dim", 300),
        ("gpt_neo", "attention_types", [[["global"], 3]]),
        ("gpt_neo", "attention_layers", ["global"] * 24),
        ("smollm3", "no_rope_layers", [1, 0, 0] * 12),
        ("granite", "logits_scaling", 0),
        ("falcon", "num_ln_in_parallel_attn", 2),
        ("starcoder2", "norm_type", "rms_norm"),
        ("gpt_oss", "swiglu_limit", 5.0),
        ("deepseek_v3", "scoring_func", "softmax"),
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("bert", "tie_word_embeddings", False),
        ("bert", "hidden_act", "mish"),
        ("bert", "classifier_dropout", 0.3),
        ("roberta", "position_embedding_type", "relative_key_query"),
        ("electra", "hidden_act", "tanh"),
        ("deberta-v2", "conv_kernel_size", 3),
        ("deberta-v2", "share_att_key", False),
        ("deberta-v2", "norm_rel_ebd", "none"),
        ("deberta-v2", "pos_att_type", ["c2p"]),
        ("deberta-v2", "relative_attention", False),
        ("deberta-v2", "embedding_size", 128),
        ("deberta-v2", "attention_head_size", 32),
        ("t5", "feed_forward_proj", "gated-mish"),
        ("t5", "dense_act_fn", "gelu"),
        ("t5", "is_encoder_decoder", False),
        ("t5", "is_decoder", True),
        ("bart", "normalize_before", True),
        ("bart", "add_final_layer_norm", True),
        ("bart", "normalize_embedding", False),
        ("bart", "static_position_embeddings", True),
        ("bart", "encoder_layerdrop", 0.1),
        ("bart", "num_hidden_layers", 3),
        ("marian", "share_encoder_decoder_embeddings", False),
        ("marian", "decoder_vocab_size", 7),
        ("marian", "normalize_embedding", True),
        ("distilbert", "tie_weights_", False),
        ("albert", "num_hidden_groups", 2),
        ("albert", "inner_group_num", 2),
        ("albert", "embedding_size", 4096),
        ("mpnet", "relative_attention_num_buckets", 64),
        ("modernbert", "norm_bias", True),
        ("modernbert", "global_attn_every_n_layers", 0),
        ("modernbert", "layer_types", ["full_attention"] * 21),
        ("modernbert", "rope_parameters", {"full_attention": {"rope_type": "yarn"}}),
        ("modernbert", "rope_scaling", {"rope_type": "mrope", "factor": 2.0}),
        (
            "olmo3",
            "rope_parameters",
            {
                "sliding_attention": {
                    "rope_type": "yarn",
                    "factor": 2,
                    "truncate": False,
                }
            },
        ),
        ("mbart", "normalize_before", False),
        ("pegasus", "static_position_embeddings", False),
        ("m2m_100", "decoder_layerdrop", 0.2),
        ("beit", "use_shared_relative_position_bias", True),
        ("dinov3_vit", "value_bias", False),
        ("dinov3_vit", "proj_bias", False),
        ("clip_text_model", "is_decoder", True),
    ],
)
def test_an_option_that_means_another_model_is_named(
    tmp_path, model_type, option, value
):
    more = {
        "deberta-v2": DEBERTA,
        "bart": {"encoder_layers": 12},
        "beit": {"use_relative_position_bias": True},
    }.get(model_type, {})
    refused(tmp_path, model_type, more | {option: value}, option)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["full"] * 4, (None, None, None)),
        (["sliding"] * 4, (5, None, None)),
        (["sliding", "full"] * 2, (5, 2, None)),
        (["sliding", "sliding", "full", "sliding"], (5, 3, None)),
        (["full", "sliding", "sliding", "full"], (5, None, (0, 3))),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "gemma3_text", "gpt_oss"])
def test_kinds_of_layers_are_windows_and_back(model_type, kinds, expected):
    (family,) = (f for f in FAMILIES if f.model_type == model_type)
    (entry,) = (e for e in family.entries if "transformer.window" in e.fields)
    kinds = [f"{kind}_attention" for kind in kinds]
    told = {"num_hidden_layers": 4, "sliding_window": 5, "layer_types": kinds}
    fields = entry.read(Options(told | {"use_sliding_window": True}, "config.json"))
    assert tuple(fields[name] for name in LayerTypes.fields) == expected
    written = entry.write(fields | {"transformer.num_layers": 4, "max_length": 9})
    assert written["layer_types"] == kinds
    assert entry.read(Options(written | {"num_hidden_layers": 4}, "")) == fields


@pytest.mark.parametrize(
    ("model_type", "told", "expected"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 4}, None),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, (0, 1)),
        ("qwen2", {"max_window_layers": 0}, None),
        ("gemma3_text", {"sliding_window_pattern": 2}, (1, 3)),
        ("olmo3", {}, (3,)),
        ("gpt_oss", {}, (1, 3)),
    ],
)
def test_kinds_of_layers_follow_from_older_options(model_type, told, expected):
    (family,) = (f for f in FAMILIES if f.model_type == model_type)
    (entry,) = (e for e in family.entries if "transformer.window" in e.fields)
    told = told | {"num_hidden_layers": 4, "sliding_window": 5}
    fields = entry.read(Options(told, "config.json"))
    whole = LayerTypes.whole_layers(fields | {"transformer.num_layers": 4})
    layers = tuple(i for i, each in enumerate(whole) if each)
    assert layers == ((0, 1, 2, 3) if expected is None else expected)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("electra", "ElectraForMaskedLM"), ("roberta", "RobertaForMaskedLM")],
)
def test_another_activation_below_a_head_of_gelu_is_named(tmp_path, model_type, name):
    refused(
        tmp_path,
        model_type,
        {"architectures": [name], "hidden_act": "gelu_new"},
        r"config\.json: hidden_act = 'gelu_new' is not supported; expected "
        r"transformer\.activation to be 'gelu'",
    )


def test_another_activation_below_a_head_of_gelu_is_not_exported():
    transformer = TransformerConfig(2, 12, 2, norm_position="post", activation="relu")
    model = Bert(transformer, 9, 8, position_offset=2, position_padding_id=1)
    with pytest.raises(UserError, match=r"transformer\.activation = 'relu'"):
        describe(model, "roberta")


def test_no_table_has_an_option_or_a_weight_twice():
    for family in FAMILIES:
        for architecture in family.architectures.values():
            entries = family.entries + architecture.entries
            names = [e.name for e in entries if e.fields and getattr(e, "name", "")]
            assert len(names) == len(set(names))
            rows = family.rows_of(architecture)
            tensors = [(row.name, row.given, row.after) for row in rows]
            assert len(tensors) == len(set(tensors))
