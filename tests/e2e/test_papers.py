"""Figures that papers and reference codes state, reached by the shipped configs."""

import os
import subprocess
import sys

import pytest

from fmjax.training import metrics


@pytest.mark.slow
def test_nanogpt_on_shakespeare(tmp_path, shared_data):
    # A fifth of the run, whose whole reaches 1.91 as its header says, and nanoGPT's own
    # code 1.903 and 1.906: see there.
    text = shared_data / "text" / "tinyshakespeare.txt"
    command = ["train", "papers/nanogpt_shakespeare/cpu.gin", f"TEXT_FILE={text}"]
    command += ["train.steps=400", "train.eval_every=0"]
    subprocess.run(
        [sys.executable, "-m", "fmjax", *command, "--run_dir", tmp_path / "run"],
        # The tests' flags make programs that compile fast and run slowly.
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=1500,
    )
    last = metrics.read(tmp_path / "run", "validation")[-1]
    assert last["step"] == 400
    assert last["tokens"] == 111_539
    assert last["loss"] <= 2.4
