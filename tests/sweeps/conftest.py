"""Sweeps whose trials are pretended: tests/sweeps/pretend_fmjax.py."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.space import LogUniform
from fmjax.sweeps.sweep import run_sweep

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (sys.executable, str(pathlib.Path(__file__).parent / "pretend_fmjax.py"))
DEADLINE_SECONDS = 120
RATES = ("1e-4", "1e-3", "1e-2")
RATE = "cosine.learning_rate"
GRID = SweepConfig(
    "quickstart.gin",
    {RATE: RATES},
    # A vocabulary would be trained, to see whether there is a validation split.
    bindings=(
        "text_task.tokenizer=@bytes()",
        "train.steps=40",
        "train.eval_every=10",
    ),
    seeds=2,
)
KINDS = {
    "grid": GRID,
    "random": dataclasses.replace(
        GRID, search="random", trials=4, space={RATE: LogUniform(1e-4, 1e-1)}
    ),
    "bayesian": dataclasses.replace(
        GRID, search="bayesian", trials=13, seeds=1, space={RATE: LogUniform(1e-4, 1.0)}
    ),
}


@dataclasses.dataclass(frozen=True)
class Pretended:
    """A folder for a sweep of pretended trials."""

    folder: pathlib.Path

    @property
    def starts(self) -> list[list]:
        """(run, parent process, time, GPUs) of each start."""
        file = self.folder.with_suffix(".starts")
        return [json.loads(x) for x in file.read_text().splitlines()]

    @property
    def started(self) -> list[str]:
        return [start[0] for start in self.starts]

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text())

    def environment(self, seconds: float) -> dict[str, str]:
        starts = str(self.folder.with_suffix(".starts"))
        return {"PRETEND_STARTS": starts, "PRETEND_SECONDS": str(seconds)}

    def sweep(self, config: SweepConfig):
        """Sweeps in this process."""
        before = dict(os.environ)
        os.environ.update(self.environment(0))
        try:
            return run_sweep(config, self.folder, ROOT, command=COMMAND, names=no_names)
        finally:
            os.environ.clear()
            os.environ.update(before)

    @contextlib.contextmanager
    def process(self, kind: str, seconds: float = 0.1) -> Iterator[subprocess.Popen]:
        """Sweeps one of KINDS in a process of its own, slowly."""
        code = (
            "import sys; from tests.sweeps.conftest import *\n"
            "Pretended(pathlib.Path(sys.argv[2])).of(KINDS[sys.argv[1]])"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, kind, str(self.folder)],
            env=os.environ | self.environment(seconds) | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def of(self, config: SweepConfig):
        """Sweeps in this process, in the environment that there is."""
        return run_sweep(config, self.folder, ROOT, command=COMMAND, names=no_names)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError("it did not come to that")


def no_names(*_) -> None:
    """The metrics of a pretended trial are not known before."""


@pytest.fixture
def pretended(tmp_path) -> Callable[[str], Pretended]:
    return lambda name="sweep": Pretended(tmp_path / name)
