"""A few of the kills of `python -m tests.faults.kill`."""

import importlib.util
import pathlib

import pytest

spec = importlib.util.spec_from_file_location(
    "kill", pathlib.Path(__file__).with_name("kill.py")
)
kill = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill)


@pytest.mark.slow
def test_killed_runs_end_as_one_that_was_left_alone(tmp_path):
    hits = kill.torment(6, tmp_path, seed=1)
    assert sum(hits.values()) >= 7
