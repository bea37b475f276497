"""examples/own_model: a model, objective, optimizer and task outside of fmjax."""

import json
import pathlib
import sys

import numpy as np
import pytest

import fmjax

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "own_model"
MODULES = ("own_parts", "own_tasks")


@pytest.fixture
def in_the_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def train(verb, tmp_path, in_the_folder):
    """Trains to so many steps, in one run directory."""

    def run(steps: int, *options):
        command = ("own.gin", f"train.steps={steps}", "train.batch_size=8", "--trust")
        code, _, errors = verb(
            "train", *command, "--run_dir", tmp_path / "run", *options
        )
        assert code == 0, errors
        return tmp_path / "run"

    return run


def losses(run_dir, split="train") -> list[float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == split]


def test_it_learns_goes_on_and_loads(train, verb):
    run_dir = train(20)
    first = losses(run_dir)
    assert len(first) == 20
    assert first[-1] < 0.9 * first[0]

    # The schedule is constant, so more steps mean the same run.
    train(24)
    assert losses(run_dir)[:20] == first
    assert len(losses(run_dir)) == 24

    run = fmjax.load(run_dir, trust=True)
    tokens = run.tokenizer.encode("12+7=")
    logits = run(tokens=[tokens])["logits"]
    assert logits.shape == (1, 5, 259)
    np.testing.assert_allclose(logits[0], reference(run.params, tokens), rtol=1e-4)

    code, out, errors = verb("eval", run_dir, "--trust")
    assert code == 0, errors
    assert json.loads(out)["loss"] == pytest.approx(losses(run_dir, "validation")[-1])


def reference(params, tokens: list[int], window: int = 8) -> np.ndarray:
    """The model's logits [T, V] in NumPy, one position after another."""
    table, up, out = (np.asarray(params[n], np.float64) for n in ("table", "up", "out"))
    rows = []
    for end in range(1, len(tokens) + 1):
        seen = ([0] * window + tokens[:end])[-window:]
        rows.append(np.tanh(np.concatenate([table[i] for i in seen]) @ up) @ out)
    return np.stack(rows)


@pytest.mark.slow
def test_it_is_planned_by_another_process(in_the_folder):
    # Its task is registered by a module that no class of the experiment is from.
    experiment = fmjax.load_experiment("own.gin", ["train.batch_size=8"], trust=True)
    assert "own_tasks" in experiment.modules
    assert fmjax.plan(experiment, "v5e", 8).parameters > 0


def test_without_trust_it_runs_no_code(verb, tmp_path, in_the_folder):
    run_dir = tmp_path / "run"
    for module in MODULES:
        sys.modules.pop(module, None)
    code, _, errors = verb("train", "own.gin", "--run_dir", run_dir)
    assert code == 2
    assert "--trust" in errors
    assert not any(module in sys.modules for module in MODULES)
