"""A tiny config, one process of it to its end, and ways to run the command."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from fmjax.training.reporting import metrics

TINY = pathlib.Path(__file__).parent / "tiny.gin"
DEADLINE_SECONDS = 300


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> list[str]:
    """The tiny config and what it asks for: arguments of `fmjax train`."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    return [str(TINY), f"TEXT_FILE={text}"]


@pytest.fixture(scope="session")
def fmjax():
    """Runs `fmjax ARGS` in a process of its own: one CPU device, another folder."""

    def run(*args, python=sys.executable, **environment) -> subprocess.CompletedProcess:
        with _start(args, python, environment) as process:
            out, err = process.communicate(timeout=DEADLINE_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def fmjax_until():
    """Runs `fmjax ARGS`, and sends a signal once `ready()` holds; the exit code."""

    def run(
        ready, number: signal.Signals, *args, python=sys.executable, **environment
    ) -> int:
        deadline = time.monotonic() + DEADLINE_SECONDS
        with _start(args, python, environment, out=subprocess.DEVNULL) as process:
            while not ready() and time.monotonic() < deadline:
                assert process.poll() is None, "it ended before the signal"
                time.sleep(0.01)
            process.send_signal(number)
            return process.wait(timeout=DEADLINE_SECONDS)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny, fmjax) -> pathlib.Path:
    """A run of the tiny config that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    ended = fmjax("train", *tiny, "--run_dir", run_dir)
    assert ended.returncode == 0, ended.stderr
    return run_dir


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Trains a shipped config, cut short by bindings, as a user's processes would."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def train(config, run_dir, *bindings) -> None:
        bindings = ("train.eval_every=0", "train.checkpoint_every=0", *bindings)
        _as_user("train", config, *bindings, "--run_dir", run_dir, cache=cache)

    train.cache = cache
    return train


@pytest.fixture(scope="session")
def validated():
    """The measures of a run's validation after its last step, as the run wrote them."""

    def last(run_dir) -> dict[str, float]:
        return metrics.read(run_dir, "validation")[-1]

    return last


@pytest.fixture(scope="session")
def measured(trained):
    """What `fmjax eval` prints of a run, which it evaluates again."""

    def measure(run_dir, *measures) -> dict[str, float]:
        out = _as_user("eval", run_dir, *measures, cache=trained.cache)
        return json.loads(out[out.index("{") :])

    return measure


def _as_user(*arguments, cache) -> str:
    # The tests' flags make programs that compile fast and run slowly.
    settings = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "FMJAX_CACHE": cache}
    return subprocess.run(
        [sys.executable, "-m", "fmjax", *map(str, arguments)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=1500,
    ).stdout


@pytest.fixture
def verb(capsys):
    """Runs `fmjax ARGS` in this process: (exit code, stdout, stderr)."""
    from fmjax.cli.main import main

    def run(*args) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def _start(args, python, environment, out=subprocess.PIPE) -> subprocess.Popen:
    return subprocess.Popen(
        [str(python), "-m", "fmjax", *map(str, args)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        cwd="/",
        stdout=out,
        stderr=out,
        text=True,
    )
