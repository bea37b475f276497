"""Checkpoints are due by time, at the same step in every process."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from fmjax.training.checkpoint.clock import SaveClock


class Now:
    """A clock that is set by hand, in seconds."""

    def __init__(self, value: float = 0.0):
        self.value = value

    def __call__(self) -> float:
        return self.value


def saves(clocks, seconds_of_steps):
    """Of each clock the steps after which it was due."""
    found = [[] for _ in clocks]
    for step, seconds in enumerate(seconds_of_steps, start=1):
        for (clock, now), due in zip(clocks, found):
            now.value += seconds
            if clock.is_due(step):
                due.append(step)
                clock.saved()
    return found


def test_one_process_saves_as_soon_as_the_interval_is_over():
    now = Now()
    assert saves([(SaveClock(0.5, now), now)], [7.0] * 12) == [[5, 10]]


def test_without_an_interval_nothing_is_due():
    now = Now()
    assert saves([(SaveClock(None, now), now)], [1e6] * 5) == [[]]


@pytest.mark.parametrize("offset", [0.0, 25.0])
def test_processes_follow_the_first_ones_clock(monkeypatch, offset):
    told, asked = [], [0]

    def broadcast(value):
        # The processes of this test ask one after another, the first one first.
        asked[0] += 1
        if asked[0] % 2:
            told[:] = [np.asarray(value)]
        return told[0]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    first, second = Now(), Now(offset)
    clocks = [(SaveClock(1.0, first), first), (SaveClock(1.0, second), second)]
    second.value += offset
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0.05, 0.15, 4000).tolist()
    mine, others = saves(clocks, seconds)
    assert mine == others
    assert len(mine) >= 6
    ends = np.cumsum(seconds)[np.array(mine) - 1]
    assert np.diff([0, *ends]).max() <= 60.0
    assert asked[0] / 2 < 1000
