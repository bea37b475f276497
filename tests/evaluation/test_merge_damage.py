"""What a merge has changed: divergences of classes, tokens and numbers in float64."""

import types

import jax
import numpy as np
import pytest
from scipy.special import expit, rel_entr, softmax
from tiny_objectives import OBJECTIVES

from fmjax.evaluation import merge_damage
from fmjax.evaluation.merge_damage import describe
from fmjax.inference.run import Run
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.text_classification import TextClassification
from fmjax.training.state import abstract_variables


class Rows:
    """A validation split of given rows."""

    def __init__(self, batch):
        self.batch = batch

    def prepare(self):
        pass

    def eval_batches(self, size, rows, max_batches=None):
        assert (size, [*rows]) == (1, [0])
        count = len(self.batch["weights"])
        for i in range(min(count, max_batches)):
            yield {name: x[i : i + 1] for name, x in self.batch.items()}


def two_runs(objective, data=None):
    """Runs of random weights, and of the same with noise."""
    _, shapes = abstract_variables(objective)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes["params"]
    )
    noisy = jax.tree.map(
        lambda x: (x + rng.normal(0, 0.03, x.shape)).astype(np.float32), drawn
    )
    config = types.SimpleNamespace(objective=objective, data=data)
    return [
        Run(config, objective.model, jax.device_put(params), None, 0)
        for params in (drawn, noisy)
    ]


def logits_of(run, batch):
    """Of a batch as a whole, in float64."""
    variables = {"params": run.params}
    objective = run.config.objective
    if isinstance(objective, LabelObjective):
        found = jax.jit(objective.predict)(variables, batch)
    else:
        found = jax.jit(run.model.apply)(variables, batch["images"])["logits"]
    return np.asarray(found, np.float64)


def kl(p, q):
    return rel_entr(p, q).sum(-1)


def both(p, q):
    return kl(p, q) + kl(1 - p, 1 - q)


MODEL, TEXTS = (
    OBJECTIVES["text_classification"].objective.model,
    OBJECTIVES["text_classification"].batch,
)
MORE = TextClassification(MODEL, output="sigmoid")
NUMBERS = TextClassification(MODEL.clone(num_classes=1), output="regression")
CASES = {
    "classes of texts": (*OBJECTIVES["text_classification"], softmax, kl),
    "sets of classes": (
        MORE,
        TEXTS | {"labels": np.ones((8, 3), np.float32)},
        lambda x, axis: expit(x),
        both,
    ),
    "numbers": (
        NUMBERS,
        TEXTS | {"labels": -np.ones(8, np.float32)},
        lambda x, axis: x,
        lambda p, q: ((p - q) ** 2).sum(-1),
    ),
    "classes of tokens": (*OBJECTIVES["token_classification"], softmax, kl),
    "classes of images": (*OBJECTIVES["classification"], softmax, kl),
}


@pytest.mark.parametrize("name", CASES)
def test_predictions_of_labels_are_compared_on_the_validation_split(name):
    objective, batch, distribution, distance = CASES[name]
    runs = two_runs(objective, Rows(batch))
    found = merge_damage.compared(*runs)
    p, q = (distribution(logits_of(run, batch), axis=-1) for run in runs)
    counted = batch["weights"] > 0
    if name == "classes of tokens":
        counted = counted[:, None] & (batch["labels"] >= 0)
    expected = distance(p, q)[counted].mean()
    value = found.squared if name == "numbers" else found.kl
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert value > 1e-5
    assert found.count == counted.sum() < counted.size
    unit = "squared difference" if name == "numbers" else "nats"
    assert unit in describe(found)
    assert "of the validation split" in describe(found)


def test_without_data_random_tokens_are_compared_and_images_are_not():
    runs = two_runs(OBJECTIVES["text_classification"].objective)
    found = merge_damage.compared(*runs)
    assert (found.count, found.rows) == (32, "random tokens")
    assert found.kl > 1e-5
    for name in ("classification", "text_contrast"):
        assert merge_damage.compared(*two_runs(OBJECTIVES[name].objective)) is None
    assert "were not compared" in describe(None)
