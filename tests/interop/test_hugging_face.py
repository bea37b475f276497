"""What is refused on import, from folders written without torch or transformers."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from interop.small_gpt2 import CONFIG as GPT2
from interop.small_gpt2 import random_tensors, write

import fmjax
from fmjax.cli.main import main
from fmjax.errors import UserError
from fmjax.interop.export import export_model
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import find
from fmjax.interop.hugging_face import import_model
from fmjax.interop.options import Options

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 6,
    "intermediate_size": 10,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 8,
    "vocab_size": 11,
}
NESTED: list = []
for _ in range(500):
    NESTED = [NESTED]


@pytest.fixture
def tensors():
    return random_tensors()


def refused(tmp_path, folder, message):
    with pytest.raises(UserError, match=message):
        import_model(folder, tmp_path / "run")
    # Nothing is left behind.
    assert not list(tmp_path.glob("*run*"))


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        (GPT2, "add_cross_attention", True),
        (GPT2, "activation_function", "tanh"),
        (GPT2, "embd_pdrop", 0.3),
        (GPT2, "n_layer", "2"),
        (GPT2, "n_layer", 2.0),
        (GPT2, "n_layer", True),
        (GPT2, "n_head", None),
        (GPT2, "tie_word_embeddings", 1),
        (GPT2, "quantization_config", {"bits": 4}),
        (GPT2, "something_new", None),
        (LLAMA, "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        (LLAMA, "rope_scaling", {"type": "linear"}),
        (LLAMA, "rope_scaling", {"type": "longrope", "factor": 2.0}),
        (LLAMA, "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        (LLAMA, "rope_parameters", {"rope_type": "default", "factor": 2.0}),
        (LLAMA, "rope_parameters", {"partial_rotary_factor": 0.5}),
        (LLAMA, "partial_rotary_factor", 0.5),
        (LLAMA, "pretraining_tp", 2),
        (LLAMA, "hidden_act", "laplace"),
        (LLAMA, "sliding_window", 128),
        (LLAMA, "head_dim", 3),
        (LLAMA, "model_type", "mamba"),
    ],
)
def test_options_that_are_not_supported_are_named(
    tmp_path, tensors, config, option, value
):
    folder = write(tmp_path / "hf", tensors, {**config, option: value})
    refused(tmp_path, folder, option)


def test_an_option_is_ignored_only_where_told(tmp_path, tensors, capsys):
    extra = {"something_new": 3, "notes": {"kind": "q4", "activation_function": "x"}}
    folder = write(tmp_path / "hf", tensors, GPT2 | extra)
    command = ["import", str(folder), str(tmp_path / "run")]
    assert main(command) == 2
    assert "--ignore something_new" in capsys.readouterr().err
    assert main([*command, "--ignore", "something_new"]) == 2
    assert "--ignore notes" in capsys.readouterr().err
    assert main([*command, "--ignore", "something_newer"]) == 2
    assert "Did you mean 'something_new'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    inside = ["notes.kind", "notes.activation_function"]
    ignored = ["something_new", *inside, "notes"]
    assert main([*command, *(w for name in ignored for w in ("--ignore", name))]) == 0
    assert f"ignored because of --ignore: {', '.join(ignored)}" in (
        capsys.readouterr().out
    )
    write(tmp_path / "plain", tensors)
    import_model(tmp_path / "plain", tmp_path / "plain_run")
    first, second = (fmjax.load(tmp_path / name) for name in ("run", "plain_run"))
    # What was ignored is recorded in the run, and in what is exported from it.
    imported = first.config.imported
    assert imported.ignoring == tuple(ignored)
    assert dataclasses.replace(imported, ignoring=()) == second.config.imported
    assert "imported.ignoring" in (tmp_path / "run" / "config.gin").read_text()
    export_model(tmp_path / "run", tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "ignore: `something_new`, `notes.kind`" in card


@pytest.mark.parametrize(
    ("option", "harmless", "other"),
    [
        ("is_llama_config", True, None),
        ("unsloth_version", "2024.9", None),
        ("unsloth_tiled_mlp", True, None),
        ("_attn_implementation_autoset", True, None),
        ("auto_map", {"AutoConfig": "configuration_x.Config"}, None),
        ("use_flash_attention_2", True, None),
        ("quantization_config", None, {"quant_method": "x"}),
        ("layerdrop", 0.0, False),
        ("is_decoder", False, True),
        ("use_sliding_window", False, True),
        ("transformers.js_config", {"dtype": "q4"}, None),
        ("rope_interleaved", False, True),
        ("activation", "swiglu", "geglu"),
    ],
)
def test_options_that_hubs_have_and_nothing_reads(option, harmless, other):
    def read(value):
        family = find(FAMILIES, "llama", "LlamaForCausalLM")
        options = Options(LLAMA | {option: value}, "config.json")
        options.ignore("model_type")
        return family.read(options, family.choose("LlamaForCausalLM", set()))

    assert read(harmless)["transformer.num_layers"] == 2
    if other is not None:
        with pytest.raises(UserError, match=f"{option} = "):
            read(other)


def test_missing_and_superfluous_tensors_are_named(tmp_path, tensors):
    less = {k: v for k, v in tensors.items() if k != "h.1.mlp.c_fc.bias"}
    refused(tmp_path, write(tmp_path / "hf", less), r"has no h\.1\.mlp\.c_fc\.bias")
    more = {**tensors, "h.2.ln_1.bias": np.ones(6, np.float32)}
    refused(tmp_path, write(tmp_path / "hf", more), r"no place for: h\.2\.ln_1\.bias")


def test_tensors_of_other_shapes_and_kinds_are_named(tmp_path, tensors):
    # Of the right size, so that a reshape would not notice.
    turned = {**tensors, "h.0.mlp.c_fc.weight": np.zeros((24, 6), np.float32)}
    refused(tmp_path, write(tmp_path / "hf", turned), r"c_fc\.weight has shape \(24, 6")
    whole = {**tensors, "ln_f.bias": np.zeros(6, np.int8)}
    refused(tmp_path, write(tmp_path / "hf", whole), r"ln_f\.bias is stored as int8")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_layer", 10**9, "transformer.num_layers 1000000000; expected 1 to 28, "),
        ("n_layer", 3, r"has no h\.2\.attn"),
        ("n_layer", 0, "transformer.num_layers 0; expected 1 to 28"),
        ("vocab_size", 2 * 10**9, "gpt.vocab_size 2000000000; expected 1 to 1,"),
        ("vocab_size", 10**13, "vocab_size = 10000000000000; expected at most"),
        ("vocab_size", 1000, r"wte\.weight has shape \(11, 6\)"),
        ("n_positions", 10**9, r"wpe\.weight has shape \(8, 6\)"),
        ("n_embd", 10**9, "transformer.embed_dim 1000000000; expected"),
        ("n_head", 10**9, "transformer.num_heads 1000000000; expected"),
        ("n_head", 0, "transformer.num_heads 0; expected"),
        ("n_inner", -1, "transformer.mlp_dim -1; expected"),
        ("layer_norm_epsilon", int("9" * 400), "layer_norm_epsilon = 9+.*64 bits"),
        ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon = nan; expected"),
        ("architectures", [{}], r"architectures = \{\} is not supported"),
        ("architectures", [["GPT2Model"]], "architectures = "),
        ("n_embd", NESTED, r"n_embd = \[\[\[.*expected int"),
    ],
)
def test_what_the_files_cannot_hold_is_refused_before_it_is_made(
    tmp_path, tensors, option, value, message
):
    folder = write(tmp_path / "hf", tensors, {**GPT2, option: value})
    tracemalloc.start()
    refused(tmp_path, folder, message)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_layers_times_experts_are_counted_before_they_are_named(tmp_path):
    # Neither is more than there are tensors; both together would be gigabytes of names.
    config = LLAMA | {"model_type": "mixtral", "hidden_size": 8}
    config |= {"num_hidden_layers": 4000, "num_local_experts": 4000}
    few = {str(i): np.zeros(1, np.float32) for i in range(4000)}
    folder = write(tmp_path / "hf", few, config)
    refused(tmp_path, folder, "config.json makes more than 9,000 tensors, 4,000 layers")


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000])
def test_a_config_that_is_nested_without_end_is_named(tmp_path, tensors, deep):
    folder = write(tmp_path / "hf", tensors)
    (folder / "config.json").write_text(deep)
    refused(tmp_path, folder, r"config\.json is not JSON")


def test_a_head_that_is_not_the_embedding_is_read_as_its_own(tmp_path, tensors):
    tied = {**tensors, "lm_head.weight": tensors["wte.weight"].copy()}
    import_model(write(tmp_path / "hf", tied), tmp_path / "tied")
    assert fmjax.load(tmp_path / "tied").model.tie_embeddings
    tied["lm_head.weight"][0, 0] += 1
    notes = import_model(write(tmp_path / "hf", tied), tmp_path / "untied").notes
    assert any("lm_head.weight differs from transformer.wte" in note for note in notes)
    run = fmjax.load(tmp_path / "untied")
    assert not run.model.tie_embeddings
    tokens = np.arange(8).reshape(2, 4)
    plain = fmjax.load(tmp_path / "tied")(tokens=tokens)
    np.testing.assert_allclose(
        run(tokens=tokens)["logits"][..., 0],
        plain["logits"][..., 0] + plain["hidden"][..., 0],
        atol=1e-5,
    )


def test_a_file_without_a_head_is_of_a_class_without(tmp_path, tensors):
    untied = GPT2 | {"tie_word_embeddings": False}
    headed = untied | {"architectures": ["GPT2LMHeadModel"]}
    refused(
        tmp_path, write(tmp_path / "hf", tensors, headed), r"has no lm_head\.weight"
    )
    bare = untied | {"architectures": ["GPT2Model"]}
    import_model(write(tmp_path / "hf", tensors, bare), tmp_path / "bare")
    assert fmjax.load(tmp_path / "bare").model.tie_embeddings
    # A head that is there counts, whatever the class.
    more = {**tensors, "lm_head.weight": np.ones((11, 6), np.float32)}
    import_model(write(tmp_path / "hf", more, bare), tmp_path / "headed")
    assert not fmjax.load(tmp_path / "headed").model.tie_embeddings


def test_options_of_generation_are_exported_as_they_came(tmp_path, tensors):
    told = {"eos_token_id": [3, 4], "pad_token_id": None, "num_beams": 4, "prefix": ":"}
    folder = write(tmp_path / "hf", tensors, GPT2 | told | {"n_ctx": 8})
    file = folder / "generation_config.json"
    file.write_text("[1]")
    refused(tmp_path, folder, r"generation_config\.json is not a JSON object")
    generation = {"temperature": 0.6, "stop_strings": ["."], "eos_token_id": 3}
    file.write_text(json.dumps(generation))
    refused(tmp_path, folder, "--ignore stop_strings")
    import_model(folder, tmp_path / "run", ignore=["stop_strings"])
    export_model(tmp_path / "run", tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert told.items() <= config.items()
    assert "bos_token_id" not in config
    written = tmp_path / "again" / "generation_config.json"
    assert json.loads(written.read_text()) == generation


def test_constants_and_prefixes_of_old_files_are_read(tmp_path, tensors):
    import_model(write(tmp_path / "hf", tensors), tmp_path / "new")
    constants = {
        "h.0.attn.bias": np.ones((1, 1, 8, 8), np.uint8),
        "h.0.attn.masked_bias": np.full((), -1e4, np.float32),
    }
    prefixed = {f"transformer.{k}": v for k, v in (tensors | constants).items()}
    import_model(write(tmp_path / "hf", prefixed), tmp_path / "old")
    tokens = np.arange(8).reshape(2, 4)
    new, old = (fmjax.load(tmp_path / name) for name in ("new", "old"))
    np.testing.assert_array_equal(
        new(tokens=tokens)["logits"], old(tokens=tokens)["logits"]
    )


@pytest.mark.parametrize(
    "name", ["../stolen.safetensors", "/etc/passwd", "model.bin", "a\\b.safetensors", 3]
)
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, tensors, name):
    folder = write(tmp_path / "hf", tensors)
    (folder / "model.safetensors").rename(tmp_path / "stolen.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, folder, "expected a .safetensors file of the folder")


def test_files_that_are_missing_or_damaged_are_named(tmp_path, tensors):
    folder = write(tmp_path / "hf", tensors)
    index = folder / "model.safetensors.index.json"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(tmp_path, folder, "model.safetensors cannot be read")
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, folder, "pytorch_model.bin is no file of torch.save|damaged")
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.gguf").write_bytes(b"")
    refused(tmp_path, folder, "found model.gguf; expected model.safetensors or")
    index.write_text("{}")
    refused(tmp_path, folder, "index.json is damaged")
    index.write_text('{"weight_map": {"a": "shard.safetensors"}}')
    refused(tmp_path, folder, r"has no shard\.safetensors")
    (folder / "shard.safetensors").write_bytes(b"")
    refused(tmp_path, folder, r"shard\.safetensors cannot be read")
    (write(folder, tensors) / "config.json").write_text("{")
    refused(tmp_path, folder, r"config\.json is not JSON")
    (folder / "config.json").unlink()
    refused(tmp_path, folder, r"no config\.json; expected a model saved by")
    refused(tmp_path, tmp_path / "nothing", "no such directory")


def test_a_directory_with_something_in_it_is_left_alone(tmp_path, tensors):
    folder, target = write(tmp_path / "hf", tensors), tmp_path / "taken"
    target.mkdir()
    import_model(folder, target)
    before = sorted(target.rglob("*"))
    with pytest.raises(UserError, match="not empty"):
        import_model(folder, target)
    assert sorted(target.rglob("*")) == before
