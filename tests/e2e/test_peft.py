"""A run of adapters: small checkpoints, exact resume, a base that must be the same."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from run_digest import run_digest
from safetensors.numpy import load_file
from scipy.special import log_softmax
from tiers import slow

from fmjax import load_experiment
from fmjax.evaluation.merge_damage import export_damage, merge_damage
from fmjax.inference.load import load
from fmjax.interop.hugging_face import import_model
from fmjax.run import registry
from fmjax.training.checkpoint import read_model
from fmjax.training.checkpoint.saved_state import (
    SavedState,
    parameter_count,
    saved_steps,
)
from fmjax.training.state import abstract_variables

SHORT = [
    "train.eval_batches=1",
    "train.eval_batch_size=64",
    "adamw.schedule=@constant()",
    "constant.learning_rate=0.01",
    "train.checkpoint_every=4",
    "train.eval_every=4",
]
PEFT = [
    "experiment.peft=@peft()",
    "peft.methods=(@lora(),)",
    "peft.trained=('stack/final_norm/*',)",
    "peft.base_dtype='bfloat16'",
    "lora.rank=2",
    "lora.dropout=0.2",
    "experiment.init_from=(@init_from(),)",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny):
    """A run of two steps."""
    from fmjax.cli.main import main

    run_dir = tmp_path_factory.mktemp("base") / "run"
    command = ["train", *tiny, *SHORT, "train.steps=2", "--run_dir", str(run_dir)]
    assert main(command) == 0
    return run_dir


def command(tiny, base, run_dir, steps, *more):
    bindings = [*SHORT, *PEFT, f"init_from.run='{base}'", f"train.steps={steps}"]
    return ["train", *tiny, *bindings, *more, "--run_dir", run_dir]


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["peft.coding=@int8()", "nf4.paths=('**/mlp/out',)"])
def test_a_run_on_coded_weights_resumes_and_loads(
    tiny, base, tmp_path, verb, validated, coding, monkeypatch
):
    bindings = ["peft.coding=@nf4()", coding]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, said, err = verb(*command(tiny, base, whole, 8, *bindings))
    assert code == 0, err
    assert "frozen for ever, kept in" in said
    assert verb(*command(tiny, base, parts, 4, *bindings))[0] == 0
    assert verb(*command(tiny, base, parts, 8, "--override", *bindings))[0] == 0
    assert run_digest(parts) == run_digest(whole)
    saved = {row[0] for row in _digest_rows(whole)}
    assert not any("codes" in path for path in saved)
    code, out, err = verb("eval", whole, "mesh.data=-1")
    assert code == 0, err
    measured = json.loads(out[out.index("{") :])
    assert measured["loss"] == pytest.approx(validated(whole)["loss"], rel=1e-6)
    layer = load(whole, dtype="bfloat16").params["stack"]["layer_0"]
    kind = "int8" if "int8" in coding else "uint8"
    suffix = "int8" if "int8" in coding else "nf4"
    assert layer["mlp"][f"out_{suffix}"]["codes"].dtype == kind
    # peft's files hold the adapters alone, which codes of the base do not change.
    code, _, err = verb("export", whole, tmp_path / "adapter", "--adapter")
    assert code == 0, err
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for ours, theirs in (("query", "q_proj"), ("value", "v_proj")):
        name = f"base_model.model.model.layers.0.self_attn.{theirs}.lora_"
        lora = load(whole).params["stack"]["layer_0"]["attention"][f"{ours}_lora"]
        a, b = (np.asarray(lora[side]) for side in ("a", "b"))
        np.testing.assert_array_equal(tensors[f"{name}A.weight"], a.T)
        np.testing.assert_array_equal(tensors[f"{name}B.weight"], b.reshape(2, -1).T)
        assert b.any()
    assert not any("mlp" in name for name in tensors)
    # As many as were trained, and never all of them in memory before they are coded.
    said = said.split(" parameters on")[0].split()[-1]
    assert f"{said} parameters" in repr(load(whole))
    read, sizes = SavedState.read, []

    def watched(self, tree, **how):
        found = read(self, tree, **how)
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(found)))
        return found

    monkeypatch.setattr(SavedState, "read", watched)
    monkeypatch.setattr(read_model, "_READ_BYTES", 4000)
    assert verb("eval", whole, "mesh.data=-1")[0] == 0
    assert max(sizes) < sum(sizes) / 2


def test_a_run_of_adapters_from_start_to_use(tiny, base, tmp_path, verb):
    before = run_digest(base)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, said, err = verb(*command(tiny, base, whole, 8))
    assert code == 0, err
    assert "trained are 224 added parameters and 32 of the model's" in said
    assert verb(*command(tiny, base, parts, 4))[0] == 0
    assert verb(*command(tiny, base, parts, 8, "--override"))[0] == 0
    assert run_digest(parts) == run_digest(whole)
    assert run_digest(base) == before

    saved = {
        path.removeprefix("params/")
        for path in (row[0] for row in _digest_rows(whole))
        if path.startswith("params/")
    }
    arrays = {
        f"stack/layer_0/attention/{weight}_lora/{name}"
        for weight in ("query", "value")
        for name in ("a", "b", "scale", "dropout")
    }
    assert saved == arrays | {"stack/final_norm/scale"}
    run, of_base = load(whole), load(base)
    assert parameter_count(whole, 8) == sum(x.size for x in jax.tree.leaves(run.params))
    table = run.params["tokens"]["table"]
    assert table.dtype == "bfloat16"
    np.testing.assert_array_equal(
        table, of_base.params["tokens"]["table"].astype("bfloat16")
    )
    tokens = np.arange(20)[None] + 60
    found, plain = (each(tokens=tokens)["logits"] for each in (run, of_base))
    assert np.abs(np.asarray(found) - np.asarray(plain)).max() > 1e-3
    code, said, err = verb("eval", whole)
    assert code == 0, err
    with (whole / "metrics.jsonl").open() as lines:
        last = [json.loads(line) for line in lines][-1]
    assert last["split"] == "validation"

    # Both moved together are found; the base alone is not.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copytree(base, moved / "base")
    code, _, err = verb(*command(tiny, moved / "base", moved / "run", 2))
    assert code == 0, err
    shutil.move(moved, tmp_path / "there")
    jax.tree.map(
        np.testing.assert_array_equal,
        load(tmp_path / "there" / "run").params["tokens"],
        run.params["tokens"],
    )
    shutil.rmtree(tmp_path / "there" / "base")
    code, _, err = verb("generate", tmp_path / "there" / "run", "--prompt", "a")
    assert code == 2
    assert "its frozen parameters are those of" in err


def test_a_changed_base_is_refused(tiny, base, tmp_path, verb):
    own = tmp_path / "base"
    shutil.copytree(base, own)
    run_dir = tmp_path / "run"
    assert verb(*command(tiny, own, run_dir, 2))[0] == 0
    # The same step with other values.
    shutil.rmtree(own)
    other = ["train", *tiny, *SHORT, "train.seed=5", "train.steps=2"]
    assert verb(*other, "--run_dir", own)[0] == 0
    code, _, err = verb(*command(tiny, own, run_dir, 4, "--override"))
    assert code == 2
    assert "has changed since" in err
    code, _, err = verb("eval", run_dir)
    assert code == 2
    assert "has changed since" in err


@pytest.mark.parametrize(
    "change",
    ["lora.alpha=400.0", slow("peft.base_dtype='float32'"), slow("lora.dropout=0.0")],
)
def test_adapters_do_not_change_when_a_run_continues(
    tiny, base, tmp_path, verb, change
):
    run_dir = tmp_path / "run"
    assert verb(*command(tiny, base, run_dir, 2))[0] == 0
    code, _, err = verb(*command(tiny, base, run_dir, 4, "--override", change))
    assert code == 2
    assert "was trained with another experiment.peft" in err


def test_a_base_that_was_moved_alone_is_named_anew(tiny, base, tmp_path, verb):
    own, moved, run_dir = tmp_path / "base", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(base, own)
    assert verb(*command(tiny, own, run_dir, 2))[0] == 0
    shutil.move(own, moved)
    code, _, err = verb(*command(tiny, moved, run_dir, 4, "--override"))
    assert code == 0, err
    assert load(run_dir).step == 4


@pytest.mark.slow
def test_a_base_that_trained_on_is_read_at_its_step(tiny, base, tmp_path, verb):
    own, run_dir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, own)
    (own / "registry.json").unlink(missing_ok=True)  # other tests' runs read the base
    assert verb(*command(tiny, own, run_dir, 2))[0] == 0

    def train_on(steps):
        more = ["train", *tiny, *SHORT, f"train.steps={steps}", "train.keep_last=1"]
        assert verb(*more, "--override", "--run_dir", own)[0] == 0
        return saved_steps(own)

    # It keeps the step that is read, while there is a run that reads it.
    assert train_on(4) == [2, 4]
    code, _, err = verb(*command(tiny, own, run_dir, 4, "--override"))
    assert code == 0, err
    assert len(registry.read(own).read_by) == 1
    shutil.rmtree(run_dir)
    assert train_on(6) == [6]


@pytest.mark.slow
def test_a_run_that_continues_needs_only_the_runs_that_it_reads(
    tiny, base, tmp_path, verb
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert verb(*command(tiny, base, first, 2))[0] == 0
    assert verb(*command(tiny, first, second, 2))[0] == 0
    # Its adapters were those of the first run, which are its own now.
    shutil.rmtree(first)
    code, _, err = verb(*command(tiny, first, second, 4, "--override"))
    assert code == 0, err
    assert load(second).step == 4


def test_steps_of_a_run_of_adapters_are_traced_without_its_base(tiny, tmp_path, verb):
    bindings = [*SHORT, *PEFT, "init_from.run='nowhere'", "train.steps=20"]
    code, out, err = verb(
        "profile", *tiny, *bindings, "--steps", "2", "--out", tmp_path / "trace"
    )
    assert code == 0, err
    assert "by instruction" in out


@pytest.mark.slow
def test_virtual_tokens_and_bottlenecks_are_trained_and_generate(
    tiny, base, tmp_path, verb
):
    run_dir = tmp_path / "run"
    methods = [
        "peft.methods=(@lora(), @prefix(), @prompt(), @bottleneck())",
        "prefix.length=2",
        "prompt.length=3",
        "bottleneck.reduction=8",
    ]
    code, said, err = verb(*command(tiny, base, run_dir, 2, *methods))
    assert code == 0, err
    # LoRA, keys and values, vectors, and two bottlenecks.
    count = 224 + 2 * 2 * 16 + 3 * 32 + 2 * (2 * 32 * 4 + 32 + 4)
    assert f"trained are {count:,} added parameters" in said
    first, last = (load(each) for each in (base, run_dir))
    added = last.params["tokens"]["table_prompt"]["rows"]
    table = np.asarray(first.params["tokens"]["table"])
    nearest = np.abs(np.asarray(added)[:, None] - table).max(-1).min(-1)
    assert (nearest > 1e-3).all()  # they began as rows of the table
    code, said, err = verb("generate", run_dir, "--prompt", "a", "--max_tokens", "4")
    assert code == 0, err
    assert said.startswith("a")


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ("lora", "attention/query_lora/a"),
        ("dora", "mlp/out_lora/magnitude"),
        ("ia3", "attention/key_ia3/out"),
        ("prefix", "attention/key_prefix/rows"),
        ("prompt", "tokens/table_prompt/rows"),
        ("bottleneck", "mlp_houlsby/down"),
        ("bitfit", "attention/query_bias"),
        ("layer_norm", "attention_norm/scale"),
    ],
)
def test_configs_add_what_they_say(tiny, tmp_path, config, trained):
    file = tmp_path / "adapted.gin"
    lines = [f"include '{tiny[0]}'", f"include 'peft/{config}.gin'", "RUN = 'base'"]
    file.write_text("\n".join(lines) + "\n")
    experiment = load_experiment(str(file), [tiny[1], "transformer.bias=True"])
    axes, shapes = abstract_variables(experiment.objective)
    plan = experiment.peft.plan(axes["params"], shapes["params"])
    flat = traverse_util.flatten_dict(plan.shapes, sep="/")
    assert any(p.endswith(trained) for p in flat.keys() - plan.never_trained.keys())
    own = set(plan.base_shapes) - set(plan.frozen)
    if not experiment.peft.methods:
        assert all("norm" in p or p.endswith("bias") for p in own)
    else:
        assert not own


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["lora.paths=('**/attention/qery',)"], "lora.paths: '**/attention/qery'"),
        (["lora.paths=('**/attention_norm/*',)"], "is a matrix"),
        (["lora.rank=99"], "expected at most 32"),
        (["peft.trained=('head/**',)"], "peft.trained: 'head/**' matches no"),
        (["peft.methods=()", "peft.trained=()"], "peft.methods = ()"),
        (["peft.methods=(@lora(), @lora())"], "twice"),
        (["init_from.parameters=('stack/**',)"], "peft freezes language_head/kernel"),
        (["lora.paths=('**/relative/*',)"], "matches no parameter"),
        (["peft.trained=('**/*bias',)"], "'**/*bias' matches no"),
        (
            [
                "peft.methods=(@lora(), @prompt())",
                "data.rows='packed'",
                "transformer.window=9",
            ],
            "data.rows = 'packed' with a prompt",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tiny, base, tmp_path, verb, bindings, message
):
    run_dir = tmp_path / "run"
    code, _, err = verb(*command(tiny, base, run_dir, 2, *bindings))
    assert code == 2
    assert message in err
    assert not run_dir.exists()


@pytest.mark.slow
def test_adapters_are_trained_further_in_another_run(tiny, base, tmp_path, verb):
    first, second = tmp_path / "first", tmp_path / "second"
    dora = ["lora.dora=True", "lora.dropout=0.0", "peft.base_dtype='float32'"]
    assert verb(*command(tiny, base, first, 4, *dora))[0] == 0
    still = ["constant.learning_rate=1e-20"]
    code, _, err = verb(*command(tiny, first, second, 2, *dora, *still))
    assert code == 0, err
    # Adapters, magnitudes and trained norms are those that it began with.
    before, after = (load(path).params for path in (first, second))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    (reference,) = SavedState(second).references
    assert (reference.run, reference.step) == (str(base), 2)
    code, _, err = verb(*command(tiny, first, second, 4, *dora, *still, "--override"))
    assert code == 0, err
    # It reads the base alone.
    shutil.rmtree(first)
    jax.tree.map(np.testing.assert_array_equal, load(second).params, before)
    for more, message in (
        (["lora.rank=4"], "Expected the same"),
        (["lora.paths=('**/attention/key',)"], "without a place here"),
    ):
        code, _, err = verb(*command(tiny, second, tmp_path / "new", 2, *dora, *more))
        assert code == 2
        assert message in err
        assert not (tmp_path / "new").exists()
    whole = ["experiment.init_from=(@init_from(),)", f"init_from.run='{second}'"]
    code, _, err = verb("train", *tiny, *SHORT, *whole, "--run_dir", tmp_path / "new")
    assert code == 2
    assert "fmjax merge" in err


@pytest.mark.slow
@pytest.mark.parametrize("coding", [("int8",), ("nf4", "nf4.paths=('**/mlp/out',)")])
def test_a_base_in_few_bits_is_merged_as_it_was_trained_with(
    tiny, base, tmp_path, verb, coding
):
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    name, *bindings = coding
    coded = [f"peft.coding=@{name}()", *bindings, "peft.base_dtype='float32'"]
    code, _, err = verb(*command(tiny, base, run_dir, 4, *coded))
    assert code == 0, err
    code, said, err = verb("merge", run_dir, whole)
    assert code == 0, err
    assert "predictions of the validation split: KL" in said
    code, said, err = verb("export", run_dir, tmp_path / "hf", "--merged")
    assert code == 0, err
    assert "predictions of the validation split: KL" in said
    import_model(tmp_path / "hf", tmp_path / "again")
    tokens = np.arange(20)[None] + 60
    paths = (run_dir, whole, tmp_path / "again", base)
    runs = (*map(load, paths), load(run_dir).merged())
    found, merged, exported, plain, in_memory = (
        np.asarray(run(tokens=tokens)["logits"]) for run in runs
    )
    np.testing.assert_allclose(merged, found, atol=1e-5)
    np.testing.assert_allclose(exported, found, atol=1e-5)
    np.testing.assert_allclose(in_memory, found, atol=1e-5)
    assert np.abs(plain - found).max() > 1e-3
    # The bits change what no adapter does.
    kernels = [
        np.asarray(r.params["stack"]["layer_0"]["mlp"]["out"])
        for r in (runs[1], runs[3])
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


@pytest.mark.slow
def test_the_damage_of_a_rounded_merge_is_measured(tiny, base, tmp_path, verb):
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    code, _, err = verb(*command(tiny, base, run_dir, 4))
    assert code == 0, err
    code, said, err = verb("merge", run_dir, whole, "--dtype", "float16")
    assert code == 0, err
    found = merge_damage(run_dir, whole)
    assert found.describe() in said

    # The same of one row after the other.
    runs = load(run_dir), load(whole)
    rows = load(run_dir).config.data.eval_batches(32, range(32), max_batches=1)
    batch = next(iter(rows))
    logits = [run(tokens=batch["tokens"])["logits"] for run in runs]
    p, q = (log_softmax(np.asarray(x, np.float64), -1) for x in logits)
    weights = batch["weights"]
    kl = (np.exp(p) * (p - q)).sum(-1)[weights > 0].mean()
    assert 0 < kl < 1e-2
    assert found.kl == pytest.approx(kl, rel=0.1)
    one_hot = np.eye(p.shape[-1])[batch["targets"]]
    losses = [(x * one_hot).sum(-1) * weights for x in (p, q)]
    perplexities = [np.exp(-x.sum() / weights.sum()) for x in losses]
    assert found.perplexity == pytest.approx(perplexities, rel=1e-5)
    assert found.perplexity[0] != found.perplexity[1]

    # An export rounds in the same way, and says so.
    export = ["export", run_dir, tmp_path / "hf", "--merged", "--dtype", "float16"]
    code, said, err = verb(*export)
    assert code == 0, err
    exported = export_damage(run_dir, "float16")
    assert exported.describe() in said
    assert exported.kl == pytest.approx(found.kl, rel=1e-3)
    assert exported.perplexity == pytest.approx(found.perplexity, rel=1e-6)
    export[2] = tmp_path / "silent"
    code, said, err = verb(*export, "--no_comparison")
    assert code == 0, err
    assert "KL" not in said


@pytest.mark.slow
def test_commands_with_an_adapter_do_what_they_do_with_its_own_run(
    tiny, base, tmp_path, verb
):
    run_dir = tmp_path / "run"
    bindings = ("peft.base_dtype='float32'", "peft.trained=()")
    code, _, err = verb(*command(tiny, base, run_dir, 4, *bindings))
    assert code == 0, err

    def said(*words):
        code, out, err = verb(*words)
        assert code == 0, err
        return out

    # Files of peft are imported for a while.
    said("export", run_dir, tmp_path / "peft", "--adapter", "--base_model", "x")
    greedy = ("--prompt", "def ", "--temperature", "0", "--max_tokens", "12")
    own, plain = (said("generate", run, *greedy) for run in (run_dir, base))
    assert own != plain
    for folder in (run_dir, tmp_path / "peft"):
        assert said("generate", base, "--adapter", folder, *greedy) == own
    own, plain = (json.loads(said("eval", run)) for run in (run_dir, base))
    found = json.loads(said("eval", base, "--adapter", run_dir))
    assert found == own
    assert abs(found["loss"] - plain["loss"]) > 1e-3
    for words, message in (
        (("eval", base, "--adapter", base), "is no run of adapters"),
        (("eval", base, "--adapter", run_dir, "--knn"), "--knn has no --adapter"),
    ):
        code, _, err = verb(*words)
        assert code == 2
        assert message in err


def _digest_rows(run_dir):
    last = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for file in sorted((last / "digests").glob("*.json")):
        yield from json.loads(file.read_bytes())["value"]
