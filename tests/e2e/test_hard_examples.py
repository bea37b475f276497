"""examples/hard_examples: batches that are chosen by the model's own losses."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.objectives.terms import LossOutput, Term
from fmjax.training.experiment import Experiment

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "hard_examples"
B, FACTOR, EVERY = 4, 2, 3


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.fixture
def train(verb, tmp_path):
    """Trains to so many steps in a run directory; the training losses."""

    def run(name, steps, *options):
        bound = ("train.batch_size=8", "hard_examples.observe_every=3", *options)
        code, _, errors = verb(
            "train", "hard.gin", f"train.steps={steps}", *bound,
            "--trust", "--run_dir", tmp_path / name,
        )  # fmt: skip
        assert code == 0, errors
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        lines = map(json.loads, lines)
        return [line["loss"] for line in lines if line["split"] == "train"]

    return run


@pytest.mark.slow
def test_a_run_resumes_exactly_at_selections_and_finds_hard_rows(train):
    whole = train("whole", 9)
    train("parts", 6)
    assert train("parts", 9) == whole
    # Between two selections rows are scored by newer parameters.
    train("between", 5)
    resumed = train("between", 9)
    assert resumed[:5] == whole[:5]
    assert len(resumed) == 9
    every = train("every", 9, "hard_examples.factor=1")
    # The first window is scored by a classifier that gives all classes alike.
    assert np.mean(every[3:6]) < np.mean(whole[3:6])


class Rows:
    """Endless batches of ever larger numbers x."""

    bad_rows = 0

    def __init__(self):
        self.position = 0

    def __next__(self):
        x = self.position * B + np.arange(B, dtype=np.float32)
        self.position += 1
        return {"x": x, "weights": np.ones(B, np.float32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


class Distance:
    """The loss of a row is (x mod 7 - params)²."""

    def loss(self, variables, batch, rng):
        assert rng is None
        error = (batch["x"] % 7 - variables["params"]) ** 2
        return LossOutput({"error": Term(error.sum(), batch["weights"].sum())}, {})


def test_batches_have_the_rows_of_most_loss_of_their_window():
    import hard_parts

    batches = hard_parts.HardBatches(Rows(), FACTOR, EVERY)
    objective, seen = Distance(), []
    for step in range(2 * EVERY):
        if step % EVERY == 0:
            batches.observe(objective, {"params": np.float32(step)}, step)
        seen.append(next(batches)["x"])
    for window in range(2):
        size = B * FACTOR * EVERY
        x = np.arange(window * size, (window + 1) * size)
        losses = (x % 7 - window * EVERY) ** 2
        chosen = np.concatenate(seen[window * EVERY : (window + 1) * EVERY]).astype(int)
        least = losses[chosen - x[0]].min()
        assert len(set(chosen)) == B * EVERY
        assert (losses > least).sum() < B * EVERY <= (losses >= least).sum()
    # From the middle of a window, the same rows are looked at.
    batches.set_state({"position": EVERY + 1})
    batches.observe(objective, {"params": np.float32(EVERY)}, EVERY + 1)
    np.testing.assert_array_equal(next(batches)["x"], seen[EVERY + 1])


def test_a_source_that_would_never_look_is_refused():
    experiment = load_experiment("hard.gin", trust=True)
    data = dataclasses.replace(experiment.data, observe_every=0)
    with pytest.raises(UserError, match=r"hard_examples\.observe_every = 0"):
        dataclasses.replace(experiment, data=data)
    assert isinstance(experiment, Experiment)
