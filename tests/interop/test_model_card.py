"""Model cards, read by PyYAML and by the Hub's own library."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import yaml
from flax import linen as nn
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from written_runs import STARTED, append, goodput, train, validation

from fmjax.cli.main import main
from fmjax.config.load import load_experiment
from fmjax.config.render import render
from fmjax.data.tasks.mixture import Mixture
from fmjax.errors import UserError
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model
from fmjax.run import directory as run_dirs
from fmjax.run.registry import promote
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.state import State

SMALL = (
    "transformer.num_layers=1", "transformer.embed_dim=16", "transformer.mlp_dim=24",
    "transformer.num_heads=2", "transformer.num_kv_heads=1", "gpt.vocab_size=100",
    "train.steps=40", "train.eval_batches=3",
    "text_task.license=cc-by-4.0", "text_task.description='Text | of <b>us</b>'",
    "text_task.source=@text_files()", "text_files.files=/home/me/secret/*.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint and an evaluation at steps 20 and 40."""
    run_dir = tmp_path_factory.mktemp("runs") / "my_run"
    experiment = load_experiment("quickstart.gin", SMALL)
    run_dirs.write(run_dir, render(experiment))
    model = experiment.objective.model
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)
    checkpoints = Checkpoints(run_dir, keep_last=2)
    for step in (20, 40):
        state = State(jax.numpy.int32(step), params, {}, (), None)
        checkpoints.save(state, {}, {})
    checkpoints.close()
    more = {"tokens": 9.0, "seconds": 1.0, "tokens_seen": 1e5, "epoch": 0.5}
    append(
        run_dir / "metrics.jsonl",
        [
            train(20, 3.0, tokens_seen=40960.0, epoch=0.25, mfu=0.4),
            validation(20, 2.75, accuracy=0.125, perplexity=15.625, **more),
            train(40, 2.0, tokens_seen=81920.0, epoch=0.5, mfu=0.5),
            validation(40, 2.5, accuracy=0.25, unigram_nll=6.0, **more),
        ],
    )
    append(run_dir / "goodput.jsonl", [goodput(40, steps=2700.0, saving=900.0)])
    start = {"began": STARTED, "step": 0, "devices": 8, "device_kind": "TPU v5e"}
    append(run_dir / "starts.jsonl", [start | {"versions": {"jax": "0.10.2"}}])
    return run_dir


@pytest.fixture(scope="module")
def card(run, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("hf") / "model"
    export_model(run, folder, license="apache-2.0", languages=["en", "de"])
    return (folder / "README.md").read_text()


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_metadata_is_what_was_measured(card, run):
    found = metadata(card)

    assert found["license"] == "apache-2.0"
    assert found["language"] == ["en", "de"]
    assert found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "text-generation"
    assert found["tags"] == ["fmjax", "llama"]
    (model,) = found["model-index"]
    assert model["name"] == "my_run"
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    last = list(lines)[-1]
    results = {m["type"]: m["value"] for r in model["results"] for m in r["metrics"]}
    # The baseline is not the model's, and sizes and times are no results.
    assert results == {"loss": last["loss"], "accuracy": last["accuracy"]}

    data = ModelCard(card).data
    assert {r.metric_type: r.metric_value for r in data.eval_results} == results
    assert {r.dataset_split for r in data.eval_results} == {"validation"}


def test_the_text_is_what_the_run_recorded(card):
    for text in (
        "# my\\_run\n",
        "| Checkpoint | step 40 |",
        "| License of the model | apache-2.0 |",
        "40 steps of 8 rows, 81,920 tokens, 0.5 epochs; seed 0",
        "devices: 8 × TPU v5e",
        "device-hours of the whole run, over all its starts: 8\n",
        "steps kept: 75.0%",
        "energy and emissions: not stated",
        "utilization: MFU 45.0%",
        "software: jax 0.10.2",
        "| `python_stdlib` | `text_files` | 100.0% | cc-by-4.0 | "
        "Text \\| of &lt;b>us&lt;/b> |",
        "On the validation split of python_stdlib at step 40",
        "| accuracy | 0.25 |",
        "| `cosine.learning_rate` | `0.003` |",
        "Intended use: not stated.",
    ):
        assert text in card, text
    # Nobody's business: where files are, and what has no effect on the model.
    assert "secret" not in card
    assert "eval_batches" not in card


def test_what_is_not_known_is_not_stated(run, tmp_path):
    promote(run, "candidate", step=20)

    assert main(["export", str(run), str(tmp_path / "hf"), "--step", "20"]) == 0

    card = (tmp_path / "hf" / "README.md").read_text()
    found = metadata(card)
    assert "license" not in found
    assert "language" not in found
    assert found["metrics"] == ["loss", "accuracy", "perplexity"]
    assert "| License of the model | not stated |" in card
    assert "| Languages | not stated |" in card
    assert "| Stage | candidate |" in card
    assert "On 3 batches of the validation split of python_stdlib at step 20" in card
    (run / "registry.json").write_text("{")
    export_model(run, tmp_path / "damaged")
    assert "| Stage" not in (tmp_path / "damaged" / "README.md").read_text()
    (run / "registry.json").unlink()


def test_parameters_are_those_of_the_weights(run, tmp_path):
    export_model(run, tmp_path / "hf", dtype="bfloat16")

    weights = load_file(tmp_path / "hf" / "model.safetensors")
    count = sum(array.size for array in weights.values())
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"| Parameters | {count:,}, bfloat16 |" in card


def test_an_imported_model_says_where_its_card_is(run, tmp_path):
    export_model(run, tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "imported")

    export_model(tmp_path / "imported", tmp_path / "again")

    card = (tmp_path / "again" / "README.md").read_text()
    assert "model-index" not in metadata(card)
    assert "imported and not trained since" in card
    assert "does not record what the model was trained on" in card
    assert "whose own card and license apply too" in card
    assert "recorded no evaluation at step 0" in card
    assert "- None by fmjax." in card


def test_each_task_of_a_mixture_has_its_license(run, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(run, mixed)
    experiment = run_dirs.stored_experiment(run)
    task = experiment.data.train
    other = dataclasses.replace(task, name="other", license=None, description=None)
    data = dataclasses.replace(experiment.data, train=Mixture((task, other), (3, 1)))
    run_dirs.write(mixed, render(dataclasses.replace(experiment, data=data)))

    export_model(mixed, tmp_path / "hf")

    card = (tmp_path / "hf" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `text_files` \| (\S+) \| (.*?) \|", card, re.M)
    assert rows == [
        ("python_stdlib", "75.0%", "cc-by-4.0"),
        ("other", "25.0%", "not stated"),
    ]


def test_a_readme_that_is_there_is_kept(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")

    with pytest.raises(UserError, match="exists and is not empty"):
        export_model(run, tmp_path)

    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.slow
def test_the_code_of_the_card_loads_the_model(card, run, tmp_path, monkeypatch):
    export_model(run, tmp_path / "path" / "to" / "this" / "folder")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    scope: dict = {}

    exec(code, scope)

    assert type(scope["model"]).__name__ == "LlamaForCausalLM"
