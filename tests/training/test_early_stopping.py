"""Which evaluation is the best, and after which of them a run stops."""

import pytest

from fmjax.errors import UserError
from fmjax.training.early_stopping import EarlyStopping
from fmjax.training.train_config import TrainConfig

PATIENT = {"eval_every": 10, "keep_best": 1, "patience": 2}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_run_stops_after_evaluations_that_are_none_better(tmp_path, sign):
    mode = {1: "min", -1: "max"}[sign]
    run = TrainConfig(**PATIENT, best_metric="accuracy", best_mode=mode)
    stopping = EarlyStopping(run, tmp_path)
    history = [5.0, 4.0, 4.5, 3.0, 3.0, 3.5]
    found = []
    for i, value in enumerate(history, start=1):
        stopping.note(10 * i, {"accuracy": sign * value, "loss": float(i)})
        found.append((stopping.best(10 * i), stopping.over(10 * i)))
    bests = [10, 20, 20, 40, 40, 40]
    assert found == [(best, i == 5) for i, best in enumerate(bests)]
    assert "40, in 2 evaluations" in stopping.describe(60)
    # As it was before, at an earlier step: what is resumed decides alike.
    assert [stopping.over(step) for step in (30, 50, 55)] == [False] * 3
    stopping.forget_after(40)
    assert not stopping.known(50)
    stopping.note(50, {"accuracy": sign * 2.0})
    assert stopping.best(60) == 50


def test_what_is_not_finite_is_no_evaluation(tmp_path):
    stopping = EarlyStopping(TrainConfig(**PATIENT), tmp_path)
    stopping.note(10, {"loss": float("nan")})
    assert not stopping.known(10)
    assert stopping.best(10) is None


@pytest.mark.parametrize("field", ["eval_every", "keep_best"])
def test_a_patience_needs_evaluations_and_a_place_for_the_best(field):
    with pytest.raises(UserError, match=rf"train\.{field} = 0: .*train\.patience = 2"):
        TrainConfig(**PATIENT | {field: 0})
