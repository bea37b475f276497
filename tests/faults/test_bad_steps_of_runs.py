"""Runs with poisoned batches: skipped, rolled back over, or stopped at."""

import dataclasses
import json
import pathlib
import textwrap

import jax
import numpy as np
import pytest
from tiers import slow

import fmjax
from fmjax.run import train as runs
from fmjax.training.bad_steps import BadSteps
from fmjax.training.faults import bad_step_log
from fmjax.training.faults.bad_step_log import Diverged
from fmjax.training.reporting import events, metrics

TINY = pathlib.Path(__file__).parents[1] / "e2e" / "tiny.gin"
STEPS = 40


class Changed:
    """Data of which some training batches are poisoned, or left out."""

    def __init__(self, data, poisoned=(), left_out=()):
        self._data, self._poisoned, self._left_out = data, poisoned, left_out

    def __getattr__(self, name):
        return getattr(self._data, name)

    def train_batches(self, *args):
        return ChangedBatches(
            self._data.train_batches(*args), self._poisoned, self._left_out
        )


class ChangedBatches:
    def __init__(self, batches, poisoned, left_out):
        self._batches, self._poisoned, self._left_out = batches, poisoned, left_out

    def __getattr__(self, name):
        return getattr(self._batches, name)

    def __next__(self):
        while self._batches.get_state()["position"] in self._left_out:
            next(self._batches)
        position = self._batches.get_state()["position"]
        batch = next(self._batches)
        if position in self._poisoned:
            batch = batch | {"weights": np.full_like(batch["weights"], np.nan)}
        return batch


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    return fmjax.load_experiment(
        str(TINY),
        [f"TEXT_FILE={text}", f"train.steps={STEPS}", "train.checkpoint_every=10"],
    )


def train(experiment, run_dir, policy, until=STEPS, **changes):
    changed = dataclasses.replace(
        experiment,
        bad_steps=policy,
        train=dataclasses.replace(experiment.train, steps=until),
    )
    object.__setattr__(changed, "data", Changed(experiment.data, **changes))
    return runs.train(changed, run_dir, override=True)


def losses(run_dir):
    return {line["step"]: line["loss"] for line in metrics.read(run_dir, "train")}


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.state.params, other.state.params)
    jax.tree.map(
        np.testing.assert_array_equal, one.state.opt_state, other.state.opt_state
    )


def test_a_run_skips_bad_steps_and_says_so(experiment, tmp_path):
    policy = BadSteps(not_finite="skip")
    outcome = train(experiment, tmp_path, policy, poisoned={7, 21})
    assert outcome.finished
    assert np.isfinite(outcome.validation["loss"])
    found = losses(tmp_path)
    assert [step for step, loss in found.items() if loss is None] == [8, 22]
    records = bad_step_log.read(tmp_path)
    assert [(r["step"], r["batch"], r["action"]) for r in records] == [
        (8, 7, "skip"),
        (22, 21, "skip"),
    ]
    assert records[0]["loss"] == "nan"


def test_the_batch_of_a_record_can_be_had_again(experiment, tmp_path):
    train(experiment, tmp_path, BadSteps(not_finite="skip"), poisoned={7})
    (record,) = bad_step_log.read(tmp_path)
    batches = experiment.data.train_batches(8, range(8), experiment.train.seed)
    batches.set_state({"position": record["batch"]})
    again = next(batches)
    batches.set_state({"position": 0})
    eighth = [next(batches) for _ in range(8)][-1]
    batches.close()
    for name in again:
        np.testing.assert_array_equal(again[name], eighth[name])


@pytest.mark.parametrize("action", ["rollback", slow("skip")])
def test_a_rollback_leaves_a_run_as_if_the_batches_had_never_been(
    experiment, tmp_path, action
):
    policy = BadSteps(not_finite=action, patience=1)
    bad = {24, 25}
    rolled = train(experiment, tmp_path / "rolled", policy, poisoned=bad)
    spared = train(experiment, tmp_path / "spared", policy, left_out=bad)
    assert rolled.finished
    assert_same(rolled, spared)
    assert losses(tmp_path / "rolled") == losses(tmp_path / "spared")
    records = bad_step_log.read(tmp_path / "rolled")
    passed = [r["passed_over"] for r in records if r["action"] == "rollback"]
    # By 'rollback' each by itself, one after the other; by 'skip' both at once.
    assert passed == ([[24], [25]] if action == "rollback" else [[24, 25]])
    kinds = [event["kind"] for event in events.read(tmp_path / "rolled")]
    assert kinds.count("rollback") == len(passed)


@pytest.mark.slow
def test_a_run_that_was_stopped_in_between_passes_over_the_same(experiment, tmp_path):
    policy = BadSteps(not_finite="rollback")
    whole = train(experiment, tmp_path / "whole", policy, poisoned={14})
    # The schedule reads train.steps, so it is stopped by an end that it does not know.
    short = interrupted(experiment, after=17)
    with pytest.raises(KeyboardInterrupt):
        train(short, tmp_path / "cut", policy, poisoned={14})
    again = train(experiment, tmp_path / "cut", policy, poisoned={14})
    assert_same(again, whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def interrupted(experiment, after):
    """The experiment, with data that raises KeyboardInterrupt after some batches."""
    data = experiment.data

    class StoppingData(type(data)):
        def train_batches(self, *args):
            return StoppingBatches(super().train_batches(*args), after)

    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    return dataclasses.replace(experiment, data=StoppingData(**fields))


class StoppingBatches:
    def __init__(self, batches, after):
        self._batches, self._after = batches, after

    def __getattr__(self, name):
        return getattr(self._batches, name)

    def __next__(self):
        if self._batches.get_state()["position"] > self._after:
            raise KeyboardInterrupt
        return next(self._batches)


def test_after_so_many_rollbacks_a_run_stops(experiment, tmp_path):
    policy = BadSteps(not_finite="rollback", max_rollbacks=2)
    with pytest.raises(Diverged, match="after 2 rollbacks"):
        train(experiment, tmp_path, policy, poisoned=set(range(14, 30)))
    assert [r["action"] for r in bad_step_log.read(tmp_path)] == [
        "rollback",
        "rollback",
        "stop",
    ]


def test_a_run_stops_at_a_bad_step_by_default(experiment, tmp_path):
    with pytest.raises(
        Diverged, match=r"last good step is 14; the last checkpoint .* 10"
    ):
        train(experiment, tmp_path, BadSteps(), poisoned={14})
    line = (tmp_path / bad_step_log.FILE).read_text()
    assert json.loads(line)["batch"] == 14
