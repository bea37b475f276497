"""Checkpoints of a bucket: complete ones count, whatever was interrupted."""

import pytest

from fmjax.storage import objects
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.bucket_steps import (
    COMMITTED,
    clear_uncommitted,
    committed_steps,
    set_aside,
)

CONTENT = {"state/manifest.ocdbt": b"m", "state/d/1": b"d", COMMITTED: b"yes"}


@pytest.fixture
def folder(buckets):
    return as_path("s3://bucket/run/checkpoints")


def put(folder, step, without=()):
    for name, content in CONTENT.items():
        if name not in without:
            objects.write(folder / str(step) / name, content)


def content_of(folder):
    names = objects.files_of(folder)
    return {name: objects.read_or_none(folder / name) for name in names}


def fail_at(number):
    """Lets an operation of the store fail, and all after it."""
    done = 0

    def before(*_):
        nonlocal done
        done += 1
        if done > number:
            raise ConnectionError("killed")

    return staticmethod(before)


def test_no_checkpoints(folder):
    assert committed_steps(folder) == []
    clear_uncommitted(folder)


def test_only_complete_checkpoints_count_and_the_rest_is_cleared(folder, buckets):
    for step in (5, 100, 20):
        put(folder, step)
    put(folder, 120, without=[COMMITTED])
    put(folder, 0, without=[COMMITTED, "state/d/1"])
    objects.write(folder / "notes" / "a.txt", b"mine")
    assert committed_steps(folder) == [5, 20, 100]

    clear_uncommitted(folder)

    assert committed_steps(folder) == [5, 20, 100]
    names = {path.name for path in folder.iterdir()}
    assert names == {"5", "20", "100", "notes"}


def test_a_store_that_does_not_answer_has_no_fewer_checkpoints(
    folder, buckets, monkeypatch
):
    put(folder, 5)
    put(folder, 20)
    before = dict(buckets.store)
    for number in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "before", fail_at(number))
            with pytest.raises(OSError, match="killed"):
                committed_steps(folder)
            with pytest.raises(OSError, match="killed"):
                clear_uncommitted(folder)
    assert buckets.store == before


def test_a_checkpoint_that_is_set_aside_is_never_lost(folder, buckets, monkeypatch):
    target = as_path("s3://bucket/run/damaged")
    for number in range(20):
        buckets.store.clear()
        put(folder, 20)
        ended = True
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "before", fail_at(number))
            try:
                set_aside(folder / "20", target / "20")
            except OSError:
                ended = False
        counts = committed_steps(folder) == [20]
        assert counts or content_of(target / "20") == CONTENT
        assert not counts or content_of(folder / "20") == CONTENT
        if ended:
            assert objects.files_of(folder) == []
            return
    raise AssertionError("it never ended")
