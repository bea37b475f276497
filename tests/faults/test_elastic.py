"""A run goes on with other devices and processes: the same order, the same losses."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fmjax.training.saved_state import saved_steps

ROOT = pathlib.Path(__file__).parents[2]
# (devices, processes, steps by the end)
STAGES = ((8, 1, 5), (4, 1, 10), (4, 2, 15), (1, 1, 20))
# A schedule that does not read train.steps, so that a run may end where it likes.
COMMON = (
    "adamw.schedule=@constant()", "constant.learning_rate=1e-3",
    "constant.warmup_steps=0",
    "train.log_every=1", "mesh.fsdp=-1", "mesh.data=1", "train.batch_size=8",
)  # fmt: skip


def train(config, run_dir, devices, processes, steps) -> str:
    command = [
        "train", ROOT / "tests" / "e2e" / config[0], *config[1:], *COMMON,
        f"train.steps={steps}", "--run_dir", run_dir,
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "fmjax"]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if processes > 1:
        each = str(devices // processes)
        launcher = [
            sys.executable, ROOT / "launch" / "local.py", "--processes", processes,
            "--devices_per_process", each, "--",
        ]  # fmt: skip
        environment = {}
    done = subprocess.run(
        list(map(str, launcher + command)),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def position(run_dir, step) -> int:
    file = run_dir / "checkpoints" / str(step) / "data" / "metadata"
    return json.loads(file.read_bytes())["value"]["iterator"]["position"]


def losses(run_dir) -> np.ndarray:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    found = {line["step"]: line["loss"] for line in lines if line["split"] == "train"}
    assert list(found) == list(range(1, STAGES[-1][2] + 1))
    return np.array(list(found.values()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["language", "images"])
def test_eight_four_two_processes_and_one(tmp_path, kind):
    text = tmp_path / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    config = {
        "language": ("tiny.gin", f"TEXT_FILE={text}", "train.checkpoint_every=0"),
        # Augmented at random, and mixed with other images of the batch.
        "images": ("tiny_images.gin", "train.checkpoint_every=0"),
    }[kind]
    train(config, tmp_path / "whole", 8, 1, STAGES[-1][2])
    before = 0
    for devices, processes, steps in STAGES:
        out = train(config, tmp_path / "run", devices, processes, steps)
        assert f"resuming from step {before}" in out or not before
        assert saved_steps(tmp_path / "run")[-1] == steps
        assert position(tmp_path / "run", steps) == steps
        before = steps
    np.testing.assert_allclose(
        losses(tmp_path / "run"), losses(tmp_path / "whole"), rtol=1e-5
    )
