"""The learning rate follows the batch, with a warning above the critical one."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_objectives import OBJECTIVES

from fmjax.errors import UserError
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.training.experiment import Experiment
from fmjax.training.noise_scale import above_critical_batch
from fmjax.training.train_config import TrainConfig


@pytest.mark.parametrize(("how", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_and_the_update_have_the_factor_of_the_batch(how, factor):
    run = TrainConfig(batch_size=128, lr_scaling=how, lr_batch_size=32)
    optimizer = AdamW(schedule=Constant(learning_rate=0.01), weight_decay=0.0)
    objective = OBJECTIVES["causal_lm"].objective
    experiment = Experiment(objective, None, optimizer, train=run)
    assert float(experiment.learning_rate(0)) == pytest.approx(0.01 * factor)
    tx = optimizer.build({"x": ("mlp",)}, 1, rate_factor=run.rate_factor)
    params = {"x": jnp.ones(3)}
    updates, _ = tx.update({"x": jnp.full(3, 0.5)}, tx.init(params), params)
    # Adam's first update has the magnitude of the rate.
    np.testing.assert_allclose(updates["x"], -0.01 * factor, rtol=1e-5)


@pytest.mark.parametrize("options", [{"lr_scaling": "sqrt"}, {"lr_batch_size": 32}])
def test_a_rule_without_a_batch_and_a_batch_without_a_rule_are_refused(options):
    with pytest.raises(UserError, match=r"train\.lr_batch_size"):
        TrainConfig(**options)


def test_a_batch_is_above_the_critical_one_only_where_both_are_known():
    run = TrainConfig(lr_scaling="sqrt", lr_batch_size=8)
    crossed = {"noise_scale": 900.0, "tokens": 1024.0}
    found = above_critical_batch(run, crossed, "tokens")
    assert "1,024 tokens" in found
    assert "900" in found
    for values in ({"noise_scale": 1100.0}, {"noise_scale": np.nan}, {}):
        assert not above_critical_batch(run, values | {"tokens": 1024.0}, "tokens")
    assert not above_critical_batch(TrainConfig(), crossed, "tokens")
