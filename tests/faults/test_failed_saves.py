"""A file system that refuses ends no run at once, and harms no older checkpoint."""

import errno
import json
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.checkpoint.saved_state import FOLDER, saved_steps
from fmjax.training.checkpoint.saver import CannotSave, Saver
from fmjax.training.reporting import metrics
from fmjax.training.state import State


def state(step: int, megabytes: int = 4) -> State:
    rng = np.random.default_rng(step)
    table = rng.normal(size=(megabytes, 1 << 18)).astype(np.float32)
    return State(jnp.int32(step), {"table": jnp.asarray(table)}, {}, ())


def saver_of(checkpoints, attempts=10):
    said: list[str] = []
    return Saver(checkpoints, attempts, 0.01, said.append), said


def what(step, megabytes=4):
    return state(step, megabytes), {"iterator": {"position": step}}, {}


def assert_whole(run_dir, steps):
    reader = Checkpoints(run_dir)
    assert reader.steps == steps
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )
    for step in steps:
        found = reader.restore(shapes, step)
        want = state(step).params
        jax.tree.map(np.testing.assert_array_equal, found.state.params, want)
    reader.close()


def test_a_full_disk_is_waited_out(small_disk, tmp_path, monkeypatch):
    run_dir = (small_disk or tmp_path) / "run"
    run_dir.mkdir()
    checkpoints = Checkpoints(run_dir, keep_last=9)
    saver, said = saver_of(checkpoints)
    saver.finish(*what(1))
    if small_disk:
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(free - (2 << 20)))
    else:
        # Where nothing may be mounted the error is made up.
        refuse(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    saver.save(*what(2))
    while not said:
        saver.is_due_again()
    assert "trying again" in said[0]
    assert saver.failed == 1
    assert saved_steps(run_dir) == [1]
    assert not list((run_dir / FOLDER).glob("*tmp*"))

    if small_disk:
        (small_disk / "filler").unlink()
    else:
        monkeypatch.undo()
    while not saver.is_due_again():
        pass
    saver.save(*what(3))
    saver.finish(*what(4))
    checkpoints.close()
    assert_whole(run_dir, [1, 3, 4])


@pytest.mark.parametrize("what_fails", [".probe", "orbax-checkpoint-tmp"])
@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied"), TimeoutError("bucket")],
    ids=repr,
)
def test_a_save_that_cannot_even_begin_is_tried_again(
    tmp_path, monkeypatch, error, what_fails
):
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    saver, said = saver_of(checkpoints)
    saver.finish(*what(1))
    refuse(monkeypatch, error, what_fails)
    for step in (2, 3):
        saver.save(*what(step))
    checkpoints.settle()
    monkeypatch.undo()
    saver.finish(*what(4))
    checkpoints.close()
    assert 1 <= len(said) <= 2
    assert_whole(tmp_path, [1, 4])


def test_after_so_many_failures_the_run_ends(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    saver, said = saver_of(checkpoints, attempts=3)
    saver.finish(*what(1))
    refuse(monkeypatch, OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(CannotSave, match=r"3 times in a row.*Read-only"):
        saver.finish(*what(2))
    assert len(said) == 2
    monkeypatch.undo()
    checkpoints.close()
    assert_whole(tmp_path, [1])


def test_failures_count_only_in_a_row(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    saver, said = saver_of(checkpoints, attempts=3)
    for step in (1, 3, 5):
        refuse(monkeypatch, OSError("no"))
        saver.save(*what(step))
        monkeypatch.undo()
        saver.finish(*what(step + 1))
    checkpoints.close()
    assert len(said) == 3
    assert_whole(tmp_path, [2, 4, 6])


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_failed_save_deletes_nothing(tmp_path, monkeypatch, keep_last):
    checkpoints = Checkpoints(tmp_path, keep_last=keep_last)
    saver, _ = saver_of(checkpoints)
    for step in range(1, keep_last + 1):
        saver.finish(*what(step))
    kept = saved_steps(tmp_path)
    fail_in_background(monkeypatch)
    saver.save(*what(8))
    checkpoints.settle()
    assert saved_steps(tmp_path) == kept
    monkeypatch.undo()
    saver.finish(*what(9))
    checkpoints.close()
    assert_whole(tmp_path, [*kept, 9][-keep_last:])


def test_a_slow_file_system_holds_up_nothing_until_the_next_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    saver, said = saver_of(checkpoints)
    original, goes_on = json.dumps, threading.Event()

    def slow(value, **options):
        if isinstance(value, dict) and "digest" in value:
            assert goes_on.wait(60)
        return original(value, **options)

    monkeypatch.setattr("fmjax.training.checkpoint.digest_item.json.dumps", slow)
    saver.save(*what(1))
    for _ in range(100):
        assert not saver.is_due_again()
    assert saved_steps(tmp_path) == []
    goes_on.set()
    saver.finish(*what(2))
    checkpoints.close()
    assert said == []
    assert_whole(tmp_path, [1, 2])


def test_the_best_are_kept_after_a_restart(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0}
    for step, loss in losses.items():
        known = metrics.values(tmp_path, "validation", "loss")
        checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1, values=known)
        checkpoints.save(*what(step))
        checkpoints.wait()
        checkpoints.close()
        writer = metrics.MetricWriter(tmp_path, step)
        writer.write(step, "validation", {"loss": loss})
        writer.close()
    assert saved_steps(tmp_path) == [2, 3]


def refuse(monkeypatch, error: Exception, what: str = ".probe") -> None:
    """New folders are refused whose name has this in it."""
    mkdir = os.mkdir

    def refused(path, *args, **kwargs):
        if what in os.fspath(path):
            raise error
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refused)


def fail_in_background(monkeypatch) -> None:
    """What is written in the background fails."""

    def broken(value):
        if isinstance(value, dict) and "digest" in value:
            raise OSError(errno.EIO, "Input/output error")
        return original(value)

    original = json.dumps
    monkeypatch.setattr("fmjax.training.checkpoint.digest_item.json.dumps", broken)
