"""The weights of the terms of a loss, told of the batch alone beforehand."""

import jax
import numpy as np
import pytest
from on_meshes import build, random_state
from tiers import slow
from tiny_objectives import OBJECTIVES

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
