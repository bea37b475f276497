"""A few of the inputs of `python -m tests.faults.fuzz`."""

from tests.faults.fuzz import fuzz


def test_readers_refuse_or_take_whatever_comes(tmp_path):
    for name, counts in fuzz(150, tmp_path, seed=2).items():
        assert counts["tried"] == 150, name
        assert counts["crashes"] == 0, name
