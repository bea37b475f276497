"""Bounds of a model's parameters, which every objective keeps after an update."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_objectives import OBJECTIVES

from fmjax.configurable import fields_of


def bounded(model):
    """The same model, with parameters of at most 1."""

    def project_params(self, params):
        return jax.tree.map(lambda x: np.minimum(x, 1), params)

    cls = type("Bounded", (type(model),), {"project_params": project_params})
    return cls(**{f.name: getattr(model, f.name) for f in fields_of(type(model))})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_bounds_of_the_model_are_those_of_its_objective(name):
    objective = OBJECTIVES[name].objective
    objective = dataclasses.replace(objective, model=bounded(objective.model))
    assert objective.project_params({"a": 3.0, "b": -2.0}) == {"a": 1.0, "b": -2.0}


def test_without_bounds_nothing_changes():
    objective = OBJECTIVES["causal_lm"].objective
    assert objective.project_params({"a": 3.0}) == {"a": 3.0}
