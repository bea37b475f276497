"""The newest jax needs Python 3.12: a run there, on a cache that was built here."""

import pathlib
import shutil

import pytest

from fmjax.training.checkpoint.saved_state import saved_steps

PYTHON = pathlib.Path(__file__).parents[2] / ".venv312" / "bin" / "python"


@pytest.mark.slow
def test_newest_jax_trains_and_continues_what_the_oldest_began(
    finished, tmp_path, tiny, fmjax
):
    assert PYTHON.exists(), "launch/python312.sh makes .venv312 of a Python 3.12"
    new = fmjax(
        "train", *tiny, "train.steps=30", "--run_dir", tmp_path / "new",
        python=PYTHON, XLA_FLAGS="",
    )  # fmt: skip
    assert new.returncode == 0, new.stderr
    assert saved_steps(tmp_path / "new") == [20, 30]

    shutil.copytree(finished, tmp_path / "old")
    old = fmjax(
        "train", *tiny, "train.steps=165", "--override",
        "--run_dir", tmp_path / "old", python=PYTHON, XLA_FLAGS="",
    )  # fmt: skip
    assert old.returncode == 0, old.stderr
    assert "resuming from step 160" in old.stdout
