"""A run that is stopped, however it is stopped, ends as if nothing had happened."""

import math
import shutil
import signal

import jax
import numpy as np
import pytest
from local_processes import losses

from fmjax.inference.load import load
from fmjax.training.checkpoint.saved_state import saved_steps
from fmjax.training.reporting import events


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, tiny, fmjax_until):
    """A run that got SIGTERM after some 30 steps, and its exit code."""
    run_dir = tmp_path_factory.mktemp("interrupted") / "run"
    code = fmjax_until(
        lambda: logged(run_dir) >= 30, signal.SIGTERM,
        "train", *tiny, "--run_dir", run_dir,
    )  # fmt: skip
    return run_dir, code


def test_a_run_that_is_told_to_stop_and_then_killed_ends_with_the_same_bits(
    finished, interrupted, tmp_path, tiny, fmjax, fmjax_until
):
    stopped, code = interrupted
    assert code == 75
    (step,) = [step for step in saved_steps(stopped) if step % 20]
    assert step == logged(stopped)
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    command = ("train", *tiny, "--run_dir", run_dir)

    code = fmjax_until(
        lambda: saved_steps(run_dir)[-1] >= step + 20, signal.SIGKILL, *command
    )
    assert code == -signal.SIGKILL
    killed = logged(run_dir)
    assert killed < 160

    again = fmjax(*command)

    assert again.returncode == 0, again.stderr
    first, second = [e["step"] for e in events.read(run_dir) if e["kind"] == "resumed"]
    assert first == step < second <= killed
    assert f"resuming from step {second}" in again.stdout
    assert_same_run(run_dir, finished)


@pytest.mark.slow
def test_streamed_run_is_stopped_and_ends_with_the_same_bits(
    tmp_path, tiny, verb, fmjax_until
):
    # Only the run that gets the signal needs a process of its own.
    streamed = ("train", *tiny, "data.streaming=True", "train.steps=60", "--run_dir")
    whole = verb(*streamed, tmp_path / "whole")
    code = fmjax_until(
        lambda: logged(tmp_path / "run") >= 30, signal.SIGTERM,
        *streamed, tmp_path / "run", "--devices", jax.device_count(),
    )  # fmt: skip
    assert code == 75

    again = verb(*streamed, tmp_path / "run")

    assert "resuming from step" in again[1], again[2]
    assert whole[0] == again[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", steps=60)


def test_mesh_and_intervals_may_change_on_resume(
    finished, interrupted, tmp_path, tiny, verb
):
    shutil.copytree(interrupted[0], tmp_path / "run")

    code, out, err = verb(
        "train", *tiny, "--run_dir", tmp_path / "run",
        "mesh.data=2", "mesh.fsdp=2", "mesh.context=2", "train.microbatches=1",
        "train.checkpoint_every=0", "train.eval_every=50", "train.log_every=2",
    )  # fmt: skip

    assert code == 0, err
    assert "data=2 × fsdp=2 × context=2" in out
    there, here = losses(finished), losses(tmp_path / "run")
    # Another mesh sums in another order: equal at first, close for long.
    np.testing.assert_allclose(here[-1], there[-1], rtol=0.02)


def test_finished_run_is_left_alone(finished, tiny, verb):
    before = files(finished)

    code, out, _ = verb("train", *tiny, "--run_dir", finished)

    assert code == 0
    assert "finished already, at step 160" in out
    assert files(finished) == before


@pytest.mark.parametrize(
    "change",
    [
        ("cosine.learning_rate = 0.01 → 0.02", "cosine.learning_rate=0.02"),
        ("transformer.mlp_dim: 64 → 96", "transformer.mlp_dim=96"),
        ("train.seed: 0 → 1", "train.seed=1"),
        ("train.batch_size: 8 → 16", "train.batch_size=16"),
        ("train.steps: 160 → 170", "train.steps=170"),  # the schedule reads it
    ],
    ids=lambda change: change[1],
)
def test_changed_meaning_is_refused(finished, tiny, verb, change):
    before = files(finished)

    code, _, err = verb("train", *tiny, "--run_dir", finished, change[1])

    assert code == 2
    assert change[0].replace(" =", ":") in err
    assert "--override" in err
    assert "Traceback" not in err
    assert files(finished) == before


def test_a_longer_run_tells_what_becomes_of_its_schedule(finished, tiny, verb):
    code, _, err = verb("train", *tiny, "--run_dir", finished, "train.steps=320")

    # A cosine from 0.01 to a tenth of it, warmed up over 10 steps: half a turn at
    # (160 - 10) / (320 - 10) of its way.
    rate = 0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * 150 / 310)) / 2)
    assert code == 2
    assert (
        "the learning rate at step 160 was 0.001 with 160 steps and is "
        f"{rate:.3g} with 320" in err
    )


def test_override_continues_with_the_change(finished, tmp_path, tiny, verb):
    shutil.copytree(finished, tmp_path / "run")

    code, out, err = verb(
        "train", *tiny, "--run_dir", tmp_path / "run", "train.steps=170", "--override"
    )

    assert code == 0, err
    assert "resuming from step 160" in out
    assert saved_steps(tmp_path / "run")[-1] == 170
    assert "train.steps = 170" in (tmp_path / "run" / "config.gin").read_text()


def logged(run_dir) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_text().count('"train"') if file.exists() else 0


def files(run_dir) -> dict:
    return {
        path.relative_to(run_dir): path.read_bytes()
        for path in run_dir.rglob("*")
        if path.is_file() and "tfevents" not in path.name  # a new one at each start
    }


def assert_same_run(one, other, steps=160):
    """The same last checkpoint bit for bit, and the same losses of every step."""
    assert saved_steps(one)[-1] == saved_steps(other)[-1] == steps
    jax.tree.map(np.testing.assert_array_equal, load(one).params, load(other).params)
    assert losses(one) == losses(other)
    assert len(losses(one)) == steps


@pytest.mark.slow
def test_a_run_stops_early_and_alike_when_it_is_resumed(tiny, tmp_path, verb):
    bindings = [
        "adamw.schedule=@constant()",
        "constant.learning_rate=1e-30",  # no evaluation is better than the first
        "train.checkpoint_every=0",
        "train.eval_every=2",
        "train.patience=2",
        "train.keep_best=1",
        "train.keep_last=1",
    ]

    def train(run_dir, *more):
        code, said, err = verb("train", *tiny, *bindings, *more, "--run_dir", run_dir)
        assert code == 0, err
        steps = sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())
        return said, steps

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said, steps = train(whole, "train.steps=20")
    assert "stopped early at step 6: no loss better than" in said
    assert steps == [2, 6]
    assert load(whole, step="best").step == 2
    assert '"step": 2' in verb("eval", whole, "--step", "best")[1]
    assert "finished" in verb("status", whole)[1]
    assert train(parts, "train.steps=2")[1] == [2]
    # As if it had been interrupted at this step, before its evaluation.
    file = parts / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(x for x in lines if '"validation"' not in x))
    assert train(parts, "train.steps=20", "--override")[1] == [2, 6]
    ends = (load(each).params for each in (parts, whole))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert "finished already, at step 6" in train(whole, "train.steps=20")[0]
    said, steps = train(whole, "train.steps=20", "train.patience=3")
    assert steps == [2, 8]
