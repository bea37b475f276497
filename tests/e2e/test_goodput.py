"""What a run's time was spent on: injected waits, a kill and its repetition."""

import signal
import time

import pytest

from fmjax.training import loop
from fmjax.training.checkpoint.saver import Saver
from fmjax.training.reporting import metrics
from fmjax.training.reporting.goodput import (
    AGAIN,
    BETWEEN,
    COMPILATION,
    DATA,
    EVALUATION,
    SAVING,
    SET_UP,
    STEPS,
    Account,
    read,
)

LATE_SECONDS = 0.05


def account_of(run_dir):
    account = Account()
    for line in read(run_dir):
        account.add(line)
    return account


@pytest.fixture
def slow(monkeypatch):
    """Batches that come late and saves that block."""
    real_batch, real_save = loop.next_batch, Saver.save

    def late(*arguments):
        time.sleep(LATE_SECONDS)
        return real_batch(*arguments)

    def save(self, *arguments):
        time.sleep(10 * LATE_SECONDS)
        return real_save(self, *arguments)

    monkeypatch.setattr(loop, "next_batch", late)
    monkeypatch.setattr(Saver, "save", save)


@pytest.mark.slow
def test_waits_are_told_by_cause_and_all_causes_make_up_the_time(
    slow, tiny, tmp_path, verb
):
    run_dir = tmp_path / "run"
    began = time.time()
    code, *_ = verb(
        *("train", *tiny, "train.steps=20", "train.checkpoint_every=10"),
        *("train.eval_every=5", "--run_dir", run_dir),
    )
    took = time.time() - began
    assert code == 0
    seconds = account_of(run_dir).seconds
    assert sum(seconds.values()) == pytest.approx(took, rel=0.01, abs=0.05)
    # Some batches come while the devices still compute.
    assert 10 * LATE_SECONDS <= seconds[DATA] <= took
    assert seconds[SAVING] >= 2 * 10 * LATE_SECONDS
    for cause in (SET_UP, COMPILATION, EVALUATION, STEPS):
        assert seconds[cause] > 0
    assert seconds[STEPS] < took - seconds[DATA] - seconds[SAVING]
    last = metrics.read(run_dir, "train")[-1]
    assert 0 < last["goodput"] < 1


@pytest.mark.slow
def test_a_killed_run_counts_what_it_does_again(tiny, tmp_path, fmjax, fmjax_until):
    run_dir = tmp_path / "run"
    command = (
        *("train", *tiny, "train.steps=1000", "train.checkpoint_every=200"),
        *("--run_dir", run_dir),
    )

    def ready():
        # Some steps after the first save.
        return any(line["step"] >= 300 for line in read(run_dir))

    assert fmjax_until(ready, signal.SIGKILL, *command) == -signal.SIGKILL
    first = account_of(run_dir)
    time.sleep(1)
    assert fmjax(*command).returncode == 0
    account = account_of(run_dir)
    assert account.seconds[BETWEEN] >= 1
    assert account.seconds[AGAIN] > 0
    assert account.seconds[STEPS] + account.seconds[AGAIN] > first.seconds[STEPS]
    lines = read(run_dir)
    assert account.total == pytest.approx(
        lines[-1]["time"] - lines[0]["began"], rel=0.01
    )
    # A run that is finished stays as it is.
    assert fmjax(*command).returncode == 0
    assert read(run_dir) == lines


def test_status_tells_what_the_time_was_spent_on(finished, verb):
    out = verb("status", finished)[1]
    (line,) = (line for line in out.splitlines() if line.startswith("  time "))
    assert "goodput " in line
    assert "compilation " in line
