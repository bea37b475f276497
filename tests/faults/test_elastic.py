"""A run goes on with other devices and processes: the same order, the same losses."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fmjax.training.checkpoint.saved_state import saved_steps
from tests.faults.watched_data import rows_of

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
    rows = run_dir.with_name(f"{run_dir.name}_rows") / str(steps)
    rows.mkdir(parents=True)
    command = [
        "train", *config, *COMMON,
        f"train.steps={steps}", "--run_dir", run_dir, "--trust",
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "fmjax"]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(pathlib.Path(__file__).parent),
        "WATCHED_FOLDER": str(rows),
    }
    if processes > 1:
        each = str(devices // processes)
        launcher = [
            sys.executable, ROOT / "launch" / "local.py", "--processes", processes,
            "--devices_per_process", each, "--",
        ]  # fmt: skip
        del environment["JAX_NUM_CPU_DEVICES"]
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


def rows_between(run_dir, first, last, stage) -> list[tuple[int, int, str]]:
    """Those given in the steps of a stage; data is read ahead of the steps."""
    folder = run_dir.with_name(f"{run_dir.name}_rows") / str(stage)
    return [row for row in rows_of(folder) if first <= row[0] < last]


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
    # Images are augmented at random, and mixed with others of the batch.
    base = {"language": "tiny.gin", "images": "tiny_images.gin"}[kind]
    watched = tmp_path / "watched.gin"
    watched.write_text(
        f"include '{ROOT / 'tests' / 'e2e' / base}'\nimport watched_data\n"
    )
    config = [watched, "train.checkpoint_every=0"]
    config += [f"TEXT_FILE='{text}'"] if kind == "language" else []
    last = STAGES[-1][2]
    train(config, tmp_path / "whole", 8, 1, last)
    before = 0
    for devices, processes, steps in STAGES:
        out = train(config, tmp_path / "run", devices, processes, steps)
        assert f"resuming from step {before}" in out or not before
        assert saved_steps(tmp_path / "run")[-1] == steps
        given = rows_between(tmp_path / "run", before, steps, steps)
        assert given == rows_between(tmp_path / "whole", before, steps, last)
        assert len(given) == (steps - before) * 8
        before = steps
    digests = {digest for *_, digest in rows_between(tmp_path / "whole", 0, last, last)}
    assert len(digests) > last
    np.testing.assert_allclose(
        losses(tmp_path / "run"), losses(tmp_path / "whole"), rtol=1e-5
    )
