"""The weights of the terms of a loss, told of the batch alone beforehand."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from on_meshes import build, random_state
from tiers import slow
from tiny_objectives import OBJECTIVES

from fmjax.training.accumulation import accumulate
from fmjax.training.state import State, abstract_variables
from fmjax.training.step import example_keys


@pytest.mark.parametrize(
    "training", [True, slow(False)], ids=["training", "evaluation"]
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_are_known_before_the_loss(name, training):
    objective, batch = OBJECTIVES[name]
    variables = random_state(objective, *build(None)).variables
    rows = len(batch["weights"])
    keys = example_keys(0, np.int32(3), rows) if training else None
    names = []

    @jax.jit
    def terms_of(variables, batch):
        terms = objective.loss(variables, batch, keys).terms
        names.extend(terms)
        return terms

    terms = terms_of(variables, batch)
    weights = objective.weights(batch)
    # Compiled functions give names in alphabetical order.
    assert list(weights) == names
    for term, weight in weights.items():
        assert weight == terms[term].weight > 0, term


# One of each kind.
TRACED = ("causal_lm", "seq2seq_lm", "image_text_contrast", "masked_autoencoding")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in TRACED else pytest.mark.slow)
        for name in OBJECTIVES
    ],
)
def test_a_step_traces_the_loss_once_and_its_weights_without_the_model(
    name, monkeypatch
):
    objective, batch = OBJECTIVES[name]
    _, variables = abstract_variables(objective)
    calls = []

    def count(cls, method):
        original = getattr(cls, method)

        def counted(*args, **kwargs):
            calls.append(method)
            return original(*args, **kwargs)

        monkeypatch.setattr(cls, method, counted)

    count(nn.Module, "apply")
    jax.eval_shape(objective.weights, batch)
    assert not calls

    count(type(objective), "loss")
    keys = example_keys(0, np.int32(3), len(batch["weights"]))
    state = State(np.int32(0), variables.pop("params"), variables, None)
    jax.eval_shape(lambda *args: accumulate(objective, *args, 1), state, batch, keys)
    assert calls.count("loss") == 1
