"""A few of the kills of `python -m tests.faults.kill`."""

import pytest

from tests.faults.kill import torment


@pytest.mark.slow
def test_killed_runs_end_as_one_that_was_left_alone(tmp_path):
    hits = torment(6, tmp_path, seed=1)
    assert sum(hits.values()) >= 7


@pytest.mark.slow
def test_killed_runs_of_adapters_end_as_one_that_was_left_alone(tmp_path):
    hits = torment(3, tmp_path, seed=1, adapters=True)
    assert sum(hits.values()) >= 4
