"""Sweeps and frames from Python, as in a notebook."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import fmjax
from fmjax.errors import UserError
from fmjax.sweeps import trial_run
from fmjax.sweeps.plot import plot_sweep
from tests.sweeps.conftest import COMMAND, GRID, RATE, Pretended
from tests.sweeps.pretend_fmjax import loss
from tests.written_runs import train, validation, write_run


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Three rates by two seeds, of pretended trials."""
    place = Pretended(tmp_path_factory.mktemp("swept") / "sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_run, "COMMAND", COMMAND)
        for name, value in place.environment(0).items():
            patch.setenv(name, value)
        return fmjax.sweep(
            "quickstart.gin",
            {RATE: [1e-4, 1e-3, 3e-2]},
            folder=place.folder,
            bindings=["text_task.tokenizer=@bytes()", "train.steps=40"],
            seeds=2,
        )


def test_a_sweep_is_a_frame_with_means_and_intervals(swept):
    frame = swept.frame
    assert frame[RATE].tolist() == [1e-3, 3e-2, 1e-4]
    for _, row in frame.iterrows():
        values = [loss(row[RATE], seed, 40) for seed in (0, 1)]
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert row.loss == pytest.approx(np.mean(values))
        assert row.half == pytest.approx((interval.high - interval.low) / 2)
        assert row.seeds == 2
    assert swept.best.point == {RATE: "0.001"}
    assert [path.name for path in swept.run_dirs(swept.best)] == [
        "0001-learning_rate=0.001,seed=0",
        "0001-learning_rate=0.001,seed=1",
    ]
    (page,) = pd.read_html(io.StringIO(swept._repr_html_()))
    np.testing.assert_allclose(page.loss.squeeze(), frame.loss, rtol=1e-5)
    assert "0.001" in repr(swept)


def test_runs_are_evaluated_with_other_bindings_once(swept, capsys, monkeypatch):
    place = Pretended(swept.folder)
    monkeypatch.setattr(trial_run, "COMMAND", COMMAND)
    for name, value in place.environment(0).items():
        monkeypatch.setenv(name, value)

    found = swept.evaluate(["data.shift=0.5"])

    assert found.index.tolist() == [run.name for row in swept.rows for run in row.runs]
    expected = [
        loss(rate, seed, 40) + 0.5 for rate, seed in zip(found[RATE], found.seed)
    ]
    np.testing.assert_allclose(found.loss, expected)
    assert "seed=1: evaluated, 6 of 6" in capsys.readouterr().out
    started = len(place.starts)
    best = swept.evaluate(["data.shift=0.5"], [swept.best])
    pd.testing.assert_frame_equal(best, found[:2])
    assert len(place.starts) == started

    with pytest.raises(UserError) as refused:
        swept.evaluate(["data.shift=-1"], [swept.best])
    assert "2 of 2 evaluations failed" in str(refused.value)
    assert "seed=1: data.shift: expected more. (all it printed" in str(refused.value)


def test_a_sweep_is_drawn_with_error_bars_and_seeds(swept):
    (axes,) = swept.plot().axes
    (bars,) = axes.containers
    line, caps, _ = bars
    x, y = line.get_data()
    frame = swept.frame.sort_values(RATE)
    np.testing.assert_allclose(x, frame[RATE])
    np.testing.assert_allclose(y, frame.loss)
    np.testing.assert_allclose(caps[1].get_ydata() - y, frame.half)
    assert axes.get_xscale() == "log"
    dots = [z for z in axes.lines if z.get_marker() == "."]
    assert sorted(float(z.get_ydata()[0]) for z in dots) == pytest.approx(
        sorted(loss(rate, seed, 40) for rate in (1e-4, 1e-3, 3e-2) for seed in (0, 1))
    )


def test_several_bindings_are_a_line_for_each_combination_of_the_others(pretended):
    space = {
        "decay": {"none": ("adamw.weight_decay=0.0",), "some": ()},
        RATE: ("1e-4", "1e-3", "1e-2"),
    }
    config = dataclasses.replace(GRID, space=space, seeds=1)
    rows = pretended().sweep(config)
    (axes,) = plot_sweep(config, rows).axes
    assert axes.get_xlabel() == RATE
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["decay = none", "decay = some"]
    for line, _, _ in axes.containers:
        np.testing.assert_allclose(line.get_xdata(), [1e-4, 1e-3, 1e-2])
        expected = [loss(rate, 0, 40) for rate in (1e-4, 1e-3, 1e-2)]
        np.testing.assert_allclose(line.get_ydata(), expected)


def test_runs_are_a_frame_of_what_differs_and_what_came_out(tmp_path):
    for name, rate, value in (("a", 0.001, 3.0), ("b/c", 0.01, 2.5)):
        write_run(
            tmp_path / name,
            f"cosine.learning_rate={rate}",
            "train.log_every=3",
            f"train.keep_last={1 + len(name)}",
            metrics=[
                train(10, 4.0),
                validation(10, 2.25),
                validation(20, value, accuracy=0.5),
            ],
        )
    write_run(tmp_path / "d", "experiment.optimizer=@muon()", "muon.schedule=@cosine()")

    frame = fmjax.runs(tmp_path)

    assert frame.index.tolist() == ["a", "b/c", "d"]
    assert frame["cosine.learning_rate"].tolist() == [0.001, 0.01, 0.003]
    assert frame["experiment.optimizer"].tolist()[1:] == ["@adamw()", "@muon()"]
    # What affects no result is no column.
    assert "train.keep_last" not in frame
    np.testing.assert_equal(frame.loss.tolist(), [3.0, 2.5, np.nan])
    np.testing.assert_equal(frame.best.tolist(), [2.25, 2.25, np.nan])
    np.testing.assert_equal(frame.accuracy.tolist(), [0.5, 0.5, np.nan])
    assert frame.step.tolist() == [20, 20, 0]


def test_a_folder_without_runs_is_an_empty_frame(tmp_path):
    assert len(fmjax.runs(tmp_path)) == 0
