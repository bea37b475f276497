"""The scripts of benchmarks/ as modules."""

import importlib.util
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def benchmark():
    """Loads benchmarks/NAME.py, which may import those beside it."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(
            f"benchmark_{name}", BENCHMARKS / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
            spec.loader.exec_module(module)
        return module

    return load
