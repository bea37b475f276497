"""Runs exported as Hugging Face folders, and runs that cannot be."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

import fmjax
from fmjax.cli.main import main
from fmjax.config.render import render
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.errors import UserError
from fmjax.interop.export import describe, export_model
from fmjax.interop.hugging_face import import_model
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.run import directory as run_dir
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.experiment import Experiment
from fmjax.training.state import State

LLAMA = TransformerConfig(
    3,
    36,
    6,
    num_kv_heads=2,
    mlp_dim=50,
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    bias=False,
    rotary=Rotary(10000.0),
)
MODEL = GPT(LLAMA, 203, 28, positions="none", tie_embeddings=False)


def random_params(model, seed=0):
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: rng.normal(scale=0.3, size=s.shape).astype(np.float32),
        nn.unbox(boxed)["params"],
    )


def stored(folder, model, params, ema=None):
    """A run directory as training leaves it."""
    run_dir.write(folder, render(Experiment(CausalLM(model))))
    checkpoints = Checkpoints(folder.absolute())
    checkpoints.save(State(jax.numpy.int32(7), params, {}, (), ema), {}, {})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return stored(folder, MODEL, random_params(MODEL))


def test_an_exported_run_is_imported_as_the_same_run(run, tmp_path):
    export_model(run, tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "again")
    old, new = fmjax.load(run), fmjax.load(tmp_path / "again")
    # What of the vocabulary is padding is random in one, zero in the other.
    old.params["tokens"]["table"] = old.params["tokens"]["table"].at[203:].set(0)
    kernel = old.params["language_head"]["kernel"]
    old.params["language_head"]["kernel"] = kernel.at[:, 203:].set(0)
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)
    tokens = np.arange(20).reshape(2, 10)
    np.testing.assert_array_equal(
        new(tokens=tokens)["logits"], old(tokens=tokens)["logits"]
    )


def test_unrolled_layers_and_averaged_weights_are_exported(tmp_path):
    unrolled = dataclasses.replace(LLAMA, scan_layers=False)
    model = MODEL.clone(transformer=unrolled)
    params, averaged = (random_params(model, seed) for seed in (0, 1))
    export_model(stored(tmp_path / "run", model, params, averaged), tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    block = averaged["stack"]["layer_2"]
    np.testing.assert_array_equal(
        tensors["model.layers.2.mlp.up_proj.weight"], block["mlp"]["in"].T
    )
    # Rows of a head's projection follow one another.
    q = block["attention"]["query"]
    named = tensors["model.layers.2.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(named[6 * 4 + 1], q[:, 4, 1])
    np.testing.assert_array_equal(
        tensors["model.embed_tokens.weight"], averaged["tokens"]["table"][:203]
    )
    assert len(tensors) == 3 * 9 + 3


def test_halves_are_written_as_they_were_read(run, tmp_path):
    export_model(run, tmp_path / "half", dtype="bfloat16")
    import_model(tmp_path / "half", tmp_path / "run")
    notes = export_model(tmp_path / "run", tmp_path / "again")
    assert "weights in bfloat16" in notes[0]
    export_model(tmp_path / "run", tmp_path / "wide", dtype="float32")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert {tensor.dtype for tensor in wide.values()} == {np.dtype("float32")}
    files = [tmp_path / name / "model.safetensors" for name in ("half", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_file(files[0])["model.norm.weight"].dtype == ml_dtypes.bfloat16


def test_shards_keep_to_their_size_and_are_indexed(run, tmp_path):
    export_model(run, tmp_path / "one")
    export_model(run, tmp_path / "many", max_shard_bytes=30_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    found = {}
    for file in sorted((tmp_path / "many").glob("*.safetensors")):
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= 30_000
        assert all(index["weight_map"][name] == file.name for name in tensors)
        found |= tensors
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())


def test_the_verb_says_what_it_wrote(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "hf"), "--dtype", "float16"]) == 0
    out = capsys.readouterr().out
    assert "llama" in out
    assert "no tokenizer files: the run has no tokenizer" in out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float16"
    assert main(["export", str(run), str(tmp_path / "hf")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_tokenizer_without_a_form_there_is_said_to_be_missing(tmp_path):
    folder = stored(tmp_path / "run", MODEL, random_params(MODEL))
    ByteTokenizer().save(folder / run_dir.TOKENIZER)
    notes = export_model(folder, tmp_path / "hf")
    assert any("no tokenizer files" in note for note in notes)
    assert {f.name for f in (tmp_path / "hf").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 1)


def test_of_several_model_types_one_may_be_chosen(run, tmp_path):
    export_model(run, tmp_path / "hf", model_type="mistral")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == "mistral"
    assert config["sliding_window"] is None
    with pytest.raises(UserError, match=r"gpt2, cannot represent"):
        export_model(run, tmp_path / "other", model_type="gpt2")
    with pytest.raises(UserError, match="Did you mean 'llama'"):
        export_model(run, tmp_path / "other", model_type="lama")
    assert not (tmp_path / "other").exists()


SMALL = TransformerConfig(2, 12, 2)
POST = dataclasses.replace(SMALL, norm_position="post")
SANDWICH = dataclasses.replace(SMALL, norm_position="sandwich")


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (GPT(dataclasses.replace(LLAMA, window=4, global_every=3, qk_norm=True,
            attention_softcap=3.0), 9, 8, "none"), "transformer.attention_softcap"),
        (GPT(dataclasses.replace(SMALL, position_bias=RelativeBuckets()), 9, 8),
            "transformer.position_bias"),
        (GPT(dataclasses.replace(LLAMA, experts=Experts(3, capacity=1.5)), 9, 8,
            "none"), "transformer.experts"),
        (GPT(dataclasses.replace(LLAMA, rotary=Rotary(interleaved=True)),
            9, 8, "none"), "rotary.interleaved = True"),
        (GPT(SMALL, 9, 8, "sinusoidal"), "gpt.positions"),
        (GPT(dataclasses.replace(SMALL, attention_scale=0.7), 9, 8),
            "transformer.attention_scale"),
        (Bert(SMALL, 9, 8), "transformer.norm_position"),
        (Bert(POST, 9, 8, "sinusoidal"), "bert.positions"),
        (Bert(POST, 9, 8, pooler="tanh"), "bert.pooler"),
        (Electra(POST, None, 9, 8, "sinusoidal"), "electra.positions"),
        (Seq2Seq(SANDWICH, SANDWICH, 9, 8, positions="learned"),
            "seq2seq.encoder: transformer.norm_position"),
        (Seq2Seq(POST, dataclasses.replace(POST, activation="relu"), 9, 8,
            positions="sinusoidal_halves"), "decoder.activation"),
    ],
)  # fmt: skip
def test_a_run_that_nothing_there_can_hold_is_refused_by_its_field(model, field):
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        describe(model)


def test_every_field_that_does_not_fit_is_named_in_one_sentence():
    small = dataclasses.replace(SMALL, norm="rmsnorm", window=3)
    with pytest.raises(UserError) as refused:
        describe(GPT(small, 9, 8, "sinusoidal"), "llama")
    message = str(refused.value)
    for part in (
        "transformer.bias = True (expected False)",
        "transformer.window = 3",
    ):
        assert part in message
    assert ".;" not in message
    assert message.endswith(".")


def test_refused_runs_write_nothing(tmp_path):
    model = GPT(SMALL, 9, 8, "sinusoidal")
    folder = stored(tmp_path / "run", model, random_params(model))
    with pytest.raises(UserError, match=r"gpt\.positions"):
        export_model(folder, tmp_path / "hf")
    with pytest.raises(UserError, match="dtype = 'float23'"):
        export_model(folder, tmp_path / "hf", dtype="float23")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
