"""A few of the inputs of `python -m tests.faults.fuzz`."""

import importlib.util
import pathlib

spec = importlib.util.spec_from_file_location(
    "fuzz", pathlib.Path(__file__).with_name("fuzz.py")
)
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)


def test_readers_refuse_or_take_whatever_comes(tmp_path):
    for name, counts in fuzz.fuzz(150, tmp_path, seed=2).items():
        assert counts["tried"] == 150, name
        assert counts["crashes"] == 0, name
