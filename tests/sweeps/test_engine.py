"""Trials run, fail, stop and are continued, against what their formula gives."""

import collections
import dataclasses
import signal

import numpy as np
import optuna
import pytest
from scipy import stats
from tiers import slow

from fmjax.errors import UserError
from fmjax.sweeps.claims import Claims
from fmjax.sweeps.config import Asha
from fmjax.sweeps.study import Study
from tests.sweeps.conftest import GRID, KINDS, RATE, RATES
from tests.sweeps.pretend_fmjax import loss


def test_a_grid_runs_each_point_and_seed_once(pretended, capsys):
    sweep = pretended()
    rows = sweep.sweep(GRID)

    names = [
        f"{i:04}-learning_rate={r},seed={s}"
        for i, r in enumerate(RATES)
        for s in (0, 1)
    ]
    assert sorted(sweep.started) == names
    expected = {r: [loss(float(r), seed, 40) for seed in (0, 1)] for r in RATES}
    best = sorted(RATES, key=lambda rate: np.mean(expected[rate]))
    assert [row.point[RATE] for row in rows] == best
    for row in rows:
        values = expected[row.point[RATE]]
        assert row.metric.mean == pytest.approx(np.mean(values))
        low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert row.metric.half == pytest.approx((high - low) / 2)
    out = capsys.readouterr().out
    assert out.index("│ 1e-2 ") < out.index("│ 1e-4 ")
    assert "3 trials: 3 finished" in out


def test_runs_go_side_by_side_and_have_gpus_of_their_own(pretended, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    sweep = pretended()
    sweep.sweep(dataclasses.replace(GRID, at_once=2, gpus_per_run=2))
    assert {gpus for *_, gpus in sweep.starts} == {"4,5", "6,7"}

    with pytest.raises(UserError, match=r"take 6 GPUs.*'4,5,6,7'"):
        sweep.sweep(dataclasses.replace(GRID, at_once=3, gpus_per_run=2))


def test_a_trial_that_fails_is_kept_and_named(pretended, capsys):
    sweep = pretended()
    ways = {
        "2": "",
        "3": "MemoryError: no room",
        "4": "killed by SIGKILL",
        "5": "expected something else",
    }
    config = dataclasses.replace(
        GRID, space={RATE: ("1e-2",), "train.keep_last": tuple(map(int, ways))}, seeds=2
    )
    rows = sweep.sweep(config)

    assert [row.state for row in rows] == ["finished", *["failed"] * 3]
    for row in rows[1:]:
        assert "seed 0: " in row.error
        assert ways[row.point["train.keep_last"]] in row.error
    assert "no room" in capsys.readouterr().out
    # The same command repeats neither what failed nor what finished.
    sweep.sweep(config)
    assert len(sweep.started) == 8


@pytest.mark.parametrize("kind", ["grid", slow("random"), slow("bayesian")])
def test_a_sweep_that_is_killed_and_continued_gives_the_same_table(kind, pretended):
    whole, killed = pretended("whole"), pretended("killed")
    whole.sweep(KINDS[kind])

    with killed.process(kind) as process:
        killed.wait_for(lambda: len(killed.started) >= 3)
        process.send_signal(signal.SIGKILL)
    killed.sweep(KINDS[kind])

    assert killed.results == whole.results
    # Only the run that was at work began again.
    assert len(killed.started) <= len(whole.started) + 1
    assert {*killed.started} == {*whole.started}


@pytest.mark.slow
def test_two_processes_share_a_study_and_do_no_run_twice(pretended):
    alone, shared = pretended("alone"), pretended("shared")
    alone.sweep(KINDS["grid"])

    with shared.process("grid") as one, shared.process("grid") as other:
        said = [process.communicate(timeout=60)[0] for process in (one, other)]

    assert [one.returncode, other.returncode] == [0, 0], said
    assert sorted(shared.started) == sorted(alone.started)
    assert {parent for _, parent, *_ in shared.starts} == {one.pid, other.pid}
    assert shared.results == alone.results
    assert all("3 trials: 3 finished" in text for text in said)


@pytest.mark.slow
def test_the_trial_of_a_dead_process_is_taken_over(pretended):
    sweep = pretended()
    with sweep.process("grid", 0.3) as one, sweep.process("grid", 0.3) as other:
        sweep.wait_for(lambda: len({p for _, p, *_ in sweep.starts}) == 2)
        lost = [name for name, parent, *_ in sweep.starts if parent == one.pid][-1]
        one.send_signal(signal.SIGKILL)
        said, _ = other.communicate(timeout=60)

    assert other.returncode == 0, said
    assert "3 trials: 3 finished" in said
    counts = collections.Counter(sweep.started)
    assert sweep.started.count(lost) == 2
    assert sum(counts.values()) == 7


@pytest.mark.slow
def test_trials_that_fall_behind_are_stopped(pretended, monkeypatch):
    sweep = pretended()
    rates = ("3e-3", "1e-2", "1e-4", "1e-1")
    config = dataclasses.replace(GRID, space={RATE: rates}, stopping=Asha(10, 2))
    # The last ones are worse at step 10 than half of those before them.
    monkeypatch.setattr(sweep.__class__, "environment", lambda self, _: {
        "PRETEND_STARTS": str(self.folder.with_suffix(".starts")),
        "PRETEND_SECONDS": "0.4",
    })  # fmt: skip
    rows = sweep.sweep(config)

    states = {row.point[RATE]: row.state for row in rows}
    assert states["3e-3"] == "finished"
    assert states["1e-4"] == states["1e-1"] == "stopped"
    for row in rows:
        if row.state == "stopped":
            # Judged by the first seed: there is no second run.
            (run,) = row.runs
            assert run.step < 40
            last = loss(float(row.point[RATE]), 0, run.step)
            assert row.metric.mean == pytest.approx(last)
    assert sum(name.endswith("seed=1") for name in sweep.started) == sum(
        row.state == "finished" for row in rows
    )
    # Once ended, nothing begins again, though some have fewer seeds.
    before = len(sweep.started)
    assert sweep.sweep(config) == rows
    assert len(sweep.started) == before
    storage = f"sqlite:///{sweep.folder / 'study.db'}"
    kept = optuna.load_study(storage=storage, study_name=None).trials
    assert len(kept) == len(rows)


def test_a_metric_that_runs_do_not_log_ends_the_sweep(pretended):
    sweep = pretended()
    config = dataclasses.replace(GRID, metric="acuracy")
    with pytest.raises(UserError, match=r"'acuracy'.*'accuracy'"):
        sweep.sweep(config)
    assert len(sweep.started) == 1


def test_draws_are_of_their_ranges_and_better_where_earlier_ones_were(tmp_path):
    config = dataclasses.replace(KINDS["bayesian"], trials=30)
    study = Study(config, tmp_path, "study", 1)
    study.fill()
    with Claims(tmp_path / "claims") as claims:
        while trial := study.claim(claims):
            study.finish(trial, loss(trial.params[RATE], 0, 40))
    study.close()

    drawn = np.array([trial.params[RATE] for trial in study.trials()])
    assert len(drawn) == len({*drawn}) == 30
    assert ((drawn >= 1e-4) & (drawn <= 1.0)).all()
    # Log-uniform draws are 1.1 decades from the best, 10^-2.5, on average.
    assert np.abs(np.log10(drawn[20:]) + 2.5).mean() < 0.5


def test_an_axis_may_be_of_variants_with_several_bindings(pretended):
    sweep = pretended()
    space = {
        "recipe": {
            "slow": (f"{RATE}=1e-4", "adamw.b2=0.99"),
            "fast": (f"{RATE}=1e-3",),
        },
        "train.seed": (3, 4),
    }
    rows = sweep.sweep(dataclasses.replace(GRID, space=space, seeds=1))

    assert sorted(sweep.started) == [
        "0000-recipe=slow,seed=3", "0001-recipe=slow,seed=4",
        "0002-recipe=fast,seed=3", "0003-recipe=fast,seed=4",
    ]  # fmt: skip
    found = {(row.point["recipe"], row.point["train.seed"]): row.metric for row in rows}
    for (recipe, seed), metric in found.items():
        rate = float(dict(slow=1e-4, fast=1e-3)[recipe])
        assert metric.mean == pytest.approx(loss(rate, int(seed), 40))
