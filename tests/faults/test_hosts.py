"""A process that dies or hangs ends the run of all within seconds, and is named."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from local_processes import children

from fmjax.training.checkpoint.saved_state import saved_steps

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_SECONDS = 300
STEPS = 160
TINY = ROOT / "tests" / "e2e" / "tiny.gin"
PATH = {"PYTHONPATH": str(pathlib.Path(__file__).parent)}


@pytest.fixture
def launched(tmp_path):
    """Two processes in a run of the tiny config, past its first checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    run_dir = tmp_path / "run"
    started = []

    def launch(*bindings, restarts=0, config=TINY, **environment):
        command = [
            sys.executable, ROOT / "launch" / "local.py", "--processes", "2",
            "--devices_per_process", "1", "--restarts", restarts, "--",
            "train", config, f"TEXT_FILE='{text}'",
            "train.checkpoint_every=10", f"train.steps={STEPS}", *bindings,
            "--run_dir", run_dir, "--trust",
        ]  # fmt: skip
        process = subprocess.Popen(
            list(map(str, command)),
            env=os.environ | PATH | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not saved_steps(run_dir) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        return process, children(process.pid), run_dir

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_is_started_again(launched):
    process, pids, run_dir = launched(restarts=1)
    os.kill(pids[1], signal.SIGKILL)
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, out
    assert "[1] ended with exit code 137" in out
    assert "starting again, 0 left" in out
    assert "resuming from step" in out
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_all_end(launched):
    process, pids, _ = launched("train.hang_seconds=5", "train.steps=100000")
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    # Its silence, or the step that waits for it, whichever is noticed first; then the
    # launcher's patience with the one that cannot end by itself.
    assert time.monotonic() - began < 120
    assert process.returncode == 75, out
    assert "fmjax: hangs: " in out
    assert f"process 1 ({os.uname().nodename}, pid {pids[1]})" in out
    assert "most recent call first" in out
    assert not pathlib.Path(f"/proc/{pids[1]}").exists()


@pytest.fixture
def watched(tmp_path) -> pathlib.Path:
    """The tiny config on data that the tests can make wait."""
    config = tmp_path / "watched.gin"
    config.write_text(f"include '{TINY}'\nimport watched_data\n")
    return config


@pytest.mark.slow
def test_processes_that_live_and_wait_for_each_other_for_ever_all_end(
    launched, watched, tmp_path
):
    began = time.monotonic()
    process, pids, run_dir = launched(
        "train.hang_seconds=5",
        config=watched,
        WATCHED_FOLDER=str(tmp_path),
        # One waits for its data, the other for it in a collective; both are alive.
        WATCHED_STUCK="1:30",
    )
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert time.monotonic() - began < 180
    assert process.returncode == 75, out
    assert "fmjax: hangs: step 31 has taken" in out
    assert f"pid {pids[1]}) hangs at step 31, waiting for its batch" in out
    assert "watched_data.py" in out
    assert saved_steps(run_dir)[-1] in (20, 30)
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_told_to_stop_before_the_first_step_a_run_ends_as_unfinished(tmp_path, watched):
    text = tmp_path / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    command = [
        sys.executable, "-m", "fmjax", "train", watched, f"TEXT_FILE='{text}'",
        "--run_dir", tmp_path / "run", "--trust",
    ]  # fmt: skip
    slow = {"WATCHED_FOLDER": str(tmp_path), "WATCHED_SLOW": "1"}
    environment = os.environ | PATH | slow | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(list(map(str, command)), env=environment) as process:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (tmp_path / "preparing").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=DEADLINE_SECONDS) == 75
    assert not (tmp_path / "run").exists()
