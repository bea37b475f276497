"""Forked runs: they continue from a checkpoint as the old run would have."""

import jax
import numpy as np
import pytest

from fmjax.inference.load import load
from fmjax.run.fork import fork
from fmjax.training.checkpoint.saved_state import saved_steps
from fmjax.training.reporting import events, metrics

DETERMINISTIC = ("step", "split", "loss", "learning_rate", "grad_norm", "tokens_seen")


def history(run_dir):
    """The lines of metrics.jsonl without times."""
    lines = metrics.read(run_dir)
    return [{name: line.get(name) for name in DETERMINISTIC} for line in lines]


def names(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.slow
def test_a_fork_with_the_same_config_ends_with_the_same_bits(
    finished, tmp_path, tiny, verb, fmjax
):
    before, new = names(finished), tmp_path / "new"
    code, out, err = verb("fork", finished, new, "--step", "140")
    assert code == 0, err
    assert "from step 140" in out
    assert saved_steps(new) == [140]
    assert metrics.read(new)[-1]["step"] == 140

    ended = fmjax("train", *tiny, "--run_dir", new)

    assert ended.returncode == 0, ended.stderr
    assert "resuming from step 140" in ended.stdout
    assert history(new) == history(finished)
    jax.tree.map(np.testing.assert_array_equal, load(new).params, load(finished).params)
    assert events.read(new)[0]["kind"] == "forked"
    assert names(finished) == before


def test_a_fork_with_another_schedule_is_a_branch(finished, tmp_path, tiny, verb):
    new = tmp_path / "new"
    assert fork(finished, new, 140) == 140
    changed = ("train", *tiny, "--run_dir", new, "train.steps=150")

    code, _, err = verb(*changed)
    assert code == 2
    assert "--override" in err
    code, _, err = verb(*changed, "--override")

    assert code == 0, err
    assert history(new)[-1]["step"] == 150
    shared = [line for line in history(new) if line["step"] <= 140]
    assert shared == history(finished)[: len(shared)]
    assert len(shared) == 140


def test_what_cannot_be_forked_is_named(finished, tmp_path, verb):
    code, _, err = verb("fork", finished, tmp_path / "new", "--step", "7")
    assert code == 2
    assert "has no checkpoint of step 7; its steps are 140, 160" in err
    assert not (tmp_path / "new").exists()

    code, _, err = verb("fork", tmp_path, tmp_path / "new")
    assert code == 2
    assert "not a run directory" in err

    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    code, _, err = verb("fork", finished, tmp_path / "full")
    assert code == 2
    assert "not empty" in err
    assert [path.name for path in names(tmp_path / "full")] == ["file"]
