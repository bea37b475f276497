"""Files of peft that are refused by name, and what commands do with those that fit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from interop.small_gpt2 import random_tensors, write
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax.cli.main import main
from fmjax.config.render import render
from fmjax.interop.hugging_face import import_model
from fmjax.interop.peft.adapter_config import AdapterConfig
from fmjax.interop.peft.export_adapter import export_adapter
from fmjax.optim.peft.peft import Peft
from fmjax.run import directory as run_dirs
from fmjax.training.checkpoint.checkpoints import save_model
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.init_from import InitFrom
from fmjax.training.state import abstract_variables

PREFIX = "base_model.model.transformer."
QKV = "h.{}.attn.c_attn"
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["c_attn"],
    "fan_in_fan_out": True,
}

NORMS = {
    "peft_type": "LN_TUNING",
    "target_modules": ["ln_1"],
    "r": ...,
    "lora_alpha": ...,
}


def low_rank(module, inputs, outputs, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"A": (rank, inputs), "B": (outputs, rank)}
    return {
        f"{PREFIX}{module}.lora_{name}.weight": rng.normal(size=shape).astype("float32")
        for name, shape in shapes.items()
    }


def tensors(seed=0):
    return {
        name: array
        for layer in range(2)
        for name, array in low_rank(QKV.format(layer), 6, 18, seed=seed + layer).items()
    }


def norms(*names):
    """Tensors of LayerNorm tuning: of modules, or single ones."""
    every = [
        name
        for each in names
        for name in (
            [each]
            if each.endswith((".weight", ".bias"))
            else [f"{each}.weight", f"{each}.bias"]
        )
    ]
    rng = np.random.default_rng(0)
    return {
        PREFIX + ".ln_tuning_layers.".join(name.rsplit(".", 1)): rng.normal(
            size=6
        ).astype("float32")
        for name in every
    }


def written(folder, found=None, **options):
    folder.mkdir(parents=True)
    config = {k: v for k, v in (CONFIG | options).items() if v is not Ellipsis}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        tensors() if found is None else found, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    import_model(write(folder / "hf", random_tensors()), folder / "run")
    return folder / "run"


def import_of(folder, base, new):
    return ["import", "--adapter", str(folder), str(new), "--base", str(base)]


def without(name):
    return {key: array for key, array in tensors().items() if name not in key}


REFUSED = {
    "no partner": ({}, without("h.1.attn.c_attn.lora_B"), "has no partner"),
    "lacks a target": ({}, without("h.1."), "has no tensors of transformer.h.1.attn"),
    "no target": (
        {"target_modules": ["c_proj"]},
        None,
        "has no target for transformer.h.0.attn.c_attn",
    ),
    "another layer": (
        {"layers_to_transform": [1]},
        None,
        "has no target for transformer.h.0.attn.c_attn",
    ),
    "another width": (
        {},
        low_rank(QKV.format(0), 8, 24) | low_rank(QKV.format(1), 8, 24),
        "has the shape (2, 8), but",
    ),
    "another depth": (
        {},
        tensors() | low_rank(QKV.format(2), 6, 18),
        "has no place for transformer.h.2.attn.c_attn",
    ),
    "another family": (
        {"target_modules": ["q_proj"]},
        {
            f"base_model.model.model.layers.0.self_attn.q_proj.lora_{n}.weight": x
            for n, x in (("A", np.ones((2, 6), "f4")), ("B", np.ones((6, 2), "f4")))
        },
        "Models of model_type llama",
    ),
    "another rank": ({"r": 4}, None, "makes its rank 4"),
    "a rank above the matrix": (
        {"r": 7},
        low_rank(QKV.format(0), 6, 18, 7) | low_rank(QKV.format(1), 6, 18, 7),
        "lora.rank = 7",
    ),
    "no magnitudes": ({"use_dora": True}, None, "no lora_magnitude_vector"),
    "magnitudes": (
        {},
        tensors()
        | {
            f"{PREFIX}{QKV.format(i)}.lora_magnitude_vector": np.ones(18, "f4")
            for i in range(2)
        },
        "use_dora = False, but",
    ),
    "integers": (
        {},
        {name: array.astype("int32") for name, array in tensors().items()},
        "expected a floating-point type",
    ),
    "a bias of B": (
        {},
        tensors() | {f"{PREFIX}{QKV.format(0)}.lora_B.bias": np.ones(18, "f4")},
        "is a tensor that is not known",
    ),
    "no linear layer": (
        {"target_modules": ["c_attn", "ln_1"]},
        tensors() | low_rank("h.0.ln_1", 6, 1),
        "expected an adapter of a linear layer",
    ),
    "a table as a matrix": (
        {"target_modules": ["c_attn", "wte"]},
        tensors() | low_rank("wte", 11, 6),
        "is a table; expected an adapter of a linear layer",
    ),
    "an unknown option": ({"lora_gate": 3}, None, "lora_gate = 3 is not supported"),
    "copied layers": (
        {"layer_replication": [[0, 2], [1, 2]]},
        None,
        "layer_replication = [[0, 2], [1, 2]] is not supported",
    ),
    "biases": ({"lora_bias": True}, None, "lora_bias = True is not supported"),
    "tokens": (
        {"trainable_token_indices": [1]},
        None,
        "trainable_token_indices = [1] is not supported",
    ),
    "a changed base": (
        {"init_lora_weights": "pissa_niter_4"},
        None,
        "path_initial_model_for_weight_conversion",
    ),
    "norms in part": (
        NORMS,
        norms("h.0.ln_1", "h.1.ln_1.weight"),
        "has no tensors of transformer.h.1.ln_1.bias",
    ),
    "norms that are no targets": (
        NORMS | {"target_modules": ["ln_2"]},
        norms("h.0.ln_1"),
        "has no target for transformer.h.0.ln_1",
    ),
    "norms beside": (
        {},
        tensors() | norms("h.0.ln_1"),
        "peft_type = 'LORA', but the adapter has tensors of LN_TUNING",
    ),
    "no norms": (
        NORMS,
        None,
        "peft_type = 'LN_TUNING', but the adapter has tensors of LORA",
    ),
    "another method": ({"peft_type": "VERA"}, None, "expected one of LORA, IA3"),
    "a wrong type": ({"r": "eight"}, None, "r = 'eight'; expected int"),
    "no pattern": ({"rank_pattern": {"(": 3}}, None, "expected a regular expression"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused_by_name(case, base, tmp_path, capsys):
    options, found, message = REFUSED[case]
    folder = written(tmp_path / "adapter", found, **options)
    assert main(import_of(folder, base, tmp_path / "new")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_no_adapter_is_refused(base, tmp_path, capsys):
    folder, new = written(tmp_path / "adapter"), tmp_path / "new"
    for command, message in (
        (["import", str(folder), str(new)], "fmjax import --adapter"),
        (["import", "--adapter", str(folder), str(new)], "belong together"),
        (import_of(base, base, new), "no adapter_config.json"),
        (import_of(tmp_path / "nothing", base, new), "no such directory"),
        (import_of(folder, folder, new), "holds no config.gin"),
        ([*import_of(folder, base, new), "--ignore", "lora_gate"], "no such option"),
        (["export", str(base), str(new), "--adapter"], "has no adapters"),
        (["export", str(base), str(new), "--merged"], "nothing to merge"),
        (["merge", str(base), str(new)], "nothing to merge"),
    ):
        assert main(command) == 2, command
        assert message in capsys.readouterr().err
        assert not new.exists()


def test_options_that_change_nothing_are_read(tmp_path):
    folder = written(
        tmp_path / "adapter",
        base_model_name_or_path="gpt2",
        auto_mapping={"base_model_class": "GPT2LMHeadModel"},
        init_lora_weights="gaussian",
        loftq_config={},
        use_qalora=False,
        lora_gate=3,
    )
    found = AdapterConfig.read(folder, ignore=["lora_gate"])
    assert (found.rank, found.alpha, found.targets) == (2, 4, ("c_attn",))


def test_the_base_that_an_adapter_names_is_told(base, tmp_path, capsys):
    for name, told in (("openai-community/gpt2", True), (None, False)):
        folder = written(tmp_path / f"{told}", base_model_name_or_path=name)
        assert main(import_of(folder, base, tmp_path / f"run {told}")) == 0
        said = " ".join(capsys.readouterr().out.split())
        line = f"trained on {name}, as adapter_config.json says; --base is {base}"
        assert (line in said) is told
        assert ("trained on" in said) is told


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """Two runs of adapters of one base, one with a table and another rank."""
    folder = tmp_path_factory.mktemp("adapted")
    table = {
        f"{PREFIX}wte.lora_embedding_{name}": np.random.default_rng(5)
        .normal(size=shape)
        .astype("float32")
        for name, shape in (("A", (2, 11)), ("B", (6, 2)))
    }
    first = written(folder / "1")
    second = written(folder / "2", tensors(7) | table, target_modules=["c_attn", "wte"])
    third = written(folder / "3", tensors(9))
    for number, adapter in enumerate((first, second, third)):
        assert main(import_of(adapter, base, folder / f"run{number}")) == 0
    return [folder / f"run{number}" for number in range(3)]


TOKENS = np.arange(10).reshape(2, 5)


def logits(run):
    return np.asarray(run(tokens=TOKENS)["logits"])


def test_adapters_of_a_loaded_run_are_switched(base, adapted):
    run = fmjax.load(base)
    plain, alone = logits(run), [logits(fmjax.load(path)) for path in adapted]
    current = run
    for path, expected in zip((*adapted, adapted[0]), (*alone, alone[0])):
        current = current.with_adapter(path)
        np.testing.assert_array_equal(logits(current), expected)
        kernel = ("stack", "layers", "mlp", "in")
        arrays = [run.params, current.params]
        for name in kernel:
            arrays = [tree[name] for tree in arrays]
        assert arrays[0] is arrays[1]
    np.testing.assert_array_equal(logits(current.without_adapters()), plain)
    assert current.without_adapters().directory == base
    third = current.with_adapter(fmjax.load(adapted[2]))
    np.testing.assert_array_equal(logits(third), alone[2])
    # Of the same shapes: nothing is compiled again.
    with jax.log_compiles():
        before = third._apply._cache_size()
        logits(third.with_adapter(adapted[0]))
        assert third._apply._cache_size() == before
    assert np.abs(alone[0] - plain).max() > 0.1


def test_loaded_adapters_are_switched_without_reading_them(base, adapted, monkeypatch):
    run = fmjax.load(base)
    named = {path.name: run.with_adapter(path) for path in adapted}
    apart = fmjax.load(adapted[2])
    expected = {name: logits(each) for name, each in named.items()}

    def refuse(*args, **kwargs):
        raise AssertionError("something is read")

    monkeypatch.setattr(SavedState, "read", refuse)
    # Of another loading, its base is compared with this one.
    other = run.with_adapter(apart)
    np.testing.assert_array_equal(logits(other), expected["run2"])
    kernels = [r.params["stack"]["layers"]["mlp"]["in"] for r in (other, run, apart)]
    assert kernels[0] is kernels[1] is not kernels[2]
    monkeypatch.setattr(SavedState, "__init__", refuse)
    programs = run._apply._cache_size()
    for current in (run, named["run0"], named["run1"]):
        for name, each in named.items():
            switched = current.with_adapter(each)
            np.testing.assert_array_equal(logits(switched), expected[name])
            assert switched.directory == each.directory
    assert run._apply._cache_size() == programs
    with pytest.raises(fmjax.errors.UserError, match="the other run has no adapters"):
        named["run0"].with_adapter(run)


def test_adapters_of_another_base_are_refused(adapted, tmp_path):
    other = random_tensors() | {"ln_f.bias": np.ones(6, "float32")}
    import_model(write(tmp_path / "hf", other), tmp_path / "run")
    run = fmjax.load(tmp_path / "run")
    for each in (adapted[0], fmjax.load(adapted[0])):
        with pytest.raises(fmjax.errors.UserError, match="Expected adapters of the sa"):
            run.with_adapter(each)
    with pytest.raises(fmjax.errors.UserError, match="is no run of adapters"):
        run.with_adapter(tmp_path / "run")


def test_a_merged_run_has_no_adapters_and_starts_others(base, adapted, tmp_path):
    for path in adapted[:2]:
        run, new = fmjax.load(path), tmp_path / path.name
        assert main(["merge", str(path), str(new)]) == 0
        whole = fmjax.load(new)
        np.testing.assert_allclose(logits(whole), logits(run), atol=2e-5)
        np.testing.assert_allclose(logits(run.merged()), logits(run), atol=2e-5)
        assert whole.config.peft is None
        assert whole.config.objective == run.merged().config.objective
        # The table was changed alone: the head has its own weights now.
        assert whole.model.tie_embeddings == (path != adapted[1])
        assert main(["export", str(new), str(tmp_path / "hf")]) == 0
        found = load_file(tmp_path / "hf" / "model.safetensors")
        assert ("lm_head.weight" in found) == (path == adapted[1])
        (tmp_path / "hf").rename(tmp_path / f"hf of {path.name}")
    run = fmjax.load(base)
    assert run.merged() is run
    assert run.without_adapters() is run


def test_several_adapters_are_averaged(base, adapted, tmp_path, capsys):
    first, third = adapted[0], adapted[2]
    new = tmp_path / "new"
    command = ["merge", str(first), str(third), str(new)]
    assert main([*command, "--weights", "0.7", "-0.3"]) == 0
    found, plain = fmjax.load(new).params, fmjax.load(base).params
    scale = 4 / 2
    for layer in range(2):
        deltas = []
        for seed in (0, 9):
            own = tensors(seed)
            a, b = (own[f"{PREFIX}{QKV.format(layer)}.lora_{n}.weight"] for n in "AB")
            deltas.append(scale * b @ a)
        expected = 0.7 * deltas[0] - 0.3 * deltas[1]
        for i, name in enumerate(("query", "key", "value")):
            weight = expected[6 * i : 6 * i + 6].T.reshape(6, 2, 3)
            change = [
                tree["stack"]["layers"]["attention"][name][layer]
                for tree in (found, plain)
            ]
            np.testing.assert_allclose(change[0] - change[1], weight, atol=1e-5)
    again = tmp_path / "again"
    assert main([*command[:-1], str(again)]) == 2
    assert "--weights has 0 numbers" in capsys.readouterr().err
    command = ["merge", str(first), str(adapted[1]), str(again), "--weights", "1", "1"]
    assert main(command) == 2
    assert "another model or another base" in capsys.readouterr().err
    assert not again.exists()


def test_a_run_of_adapters_is_exported_by_one_of_two_ways(adapted, tmp_path, capsys):
    assert main(["export", str(adapted[0]), str(tmp_path / "hf")]) == 2
    said = capsys.readouterr().err
    assert "--merged" in said
    assert "--adapter" in said
    assert main(["export", str(adapted[0]), str(tmp_path / "a"), "--adapter"]) == 0
    found = load_file(tmp_path / "a" / "adapter_model.safetensors")
    expected = tensors()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6)


def test_norms_come_in_and_go_out(base, tmp_path):
    given = norms("h.0.ln_1", "h.1.ln_1")
    folder = written(tmp_path / "adapter", given, **NORMS)
    assert main(import_of(folder, base, tmp_path / "run")) == 0
    run, plain = fmjax.load(tmp_path / "run"), fmjax.load(base)
    for name, param in (("weight", "scale"), ("bias", "bias")):
        there = [given[f"{PREFIX}h.{i}.ln_1.ln_tuning_layers.{name}"] for i in range(2)]
        here = run.params["stack"]["layers"]["attention_norm"][param]
        np.testing.assert_array_equal(here, there)
    assert np.abs(logits(run) - logits(plain)).max() > 0.1
    export_adapter(tmp_path / "run", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["target_modules"]) == ("LN_TUNING", ["ln_1"])
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)


def test_biases_that_are_trained_alone_are_no_adapter_of_peft(base, tmp_path):
    saved, run = SavedState(base), fmjax.load(base)
    peft = Peft(trained=("**/*bias",))
    axes, shapes = abstract_variables(run.config.objective)
    frozen = peft.plan(axes["params"], shapes["params"]).frozen
    arrays = {path: (path, dtype) for path, dtype in frozen.items()}
    rest = Reference(str(base), saved.step, saved.digest_of(arrays), arrays)
    flat = traverse_util.flatten_dict(run.params, sep="/")
    biases = {path: x for path, x in flat.items() if path not in frozen}
    config = dataclasses.replace(
        run.config, peft=peft, init_from=(InitFrom(str(base)),)
    )
    run_dirs.write(tmp_path / "run", render(config))
    save_model(
        tmp_path / "run",
        traverse_util.unflatten_dict(biases, sep="/"),
        references=[rest],
    )
    with pytest.raises(fmjax.errors.UserError, match="no norms that are trained alone"):
        export_adapter(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_value_is_refused_when_the_adapter_is_read(tmp_path):
    import_model(write(tmp_path / "hf", random_tensors()), tmp_path / "base")
    folder = written(tmp_path / "adapter")
    assert main(import_of(folder, tmp_path / "base", tmp_path / "new")) == 0
    (tmp_path / "base").rename(tmp_path / "old")
    other = random_tensors() | {"ln_f.bias": np.ones(6, "float32")}
    import_model(write(tmp_path / "hf2", other), tmp_path / "base")
    with pytest.raises(fmjax.errors.UserError, match="has changed since"):
        fmjax.load(tmp_path / "new")
