"""Two runs never share a directory of a bucket, and a dead one's lock is replaced."""

import contextlib
import json
import threading
import time

import pytest

from fmjax.errors import UserError
from fmjax.run import bucket_lock
from fmjax.run import lock as run_lock
from fmjax.run.bucket_lock import BucketLock
from fmjax.storage import objects
from fmjax.storage.paths import as_path

_HERE = threading.local()


@pytest.fixture
def run_dir(buckets, monkeypatch):
    """A run directory; every thread is a host of its own, named by `host`."""

    def own():
        host = getattr(_HERE, "host", "here")
        return {"host": host, "pid": 1, "started": "1", "since": 1.0}

    monkeypatch.setattr(run_lock, "own", own)
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(run_lock, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(bucket_lock, "REFRESH_SECONDS", 1e6)
    return as_path("s3://bucket/run")


def write(run_dir, host) -> bytes:
    owner = {"host": host, "pid": 7, "started": "1", "since": time.time() - 7200}
    content = json.dumps(owner | {"updated": time.time()}).encode()
    objects.write(run_dir / run_lock.FILE, content)
    return content


def on_hosts(run_dir, number) -> dict[str, str]:
    """What each of so many hosts gets that take the lock at once."""
    start, ended = threading.Barrier(number), threading.Event()
    got = {}

    def take(host):
        _HERE.host = host
        start.wait()
        try:
            BucketLock(run_dir).take()
        except UserError as error:
            got[host] = str(error)
            return
        got[host] = "taken"
        while not ended.wait(0.05):
            objects.write(run_dir / run_lock.FILE, bucket_lock._content())

    threads = [threading.Thread(target=take, args=(f"h{n}",)) for n in range(number)]
    for thread in threads:
        thread.start()
    while len(got) < number:
        time.sleep(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    return got


@pytest.mark.parametrize("before", ["nothing", "a stale lock", "a torn one"])
def test_one_of_many_hosts_gets_the_lock(before, run_dir):
    if before == "a stale lock":
        write(run_dir, "dead")
    elif before == "a torn one":
        objects.write(run_dir / run_lock.FILE, b'{"host": ')

    got = on_hosts(run_dir, 6)

    (winner,) = [host for host, result in got.items() if result == "taken"]
    assert run_lock.read(run_dir)["host"] == winner
    for host, result in got.items():
        assert host == winner or f"is in use: process 1 on {winner}" in result
    assert [path.name for path in run_dir.iterdir()] == [run_lock.FILE]


def test_a_lock_that_is_refreshed_is_refused_and_named(run_dir):
    ended = threading.Event()

    def refresh():
        while not ended.wait(0.1):
            write(run_dir, "elsewhere")

    write(run_dir, "elsewhere")
    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"process 7 on elsewhere .* 2 h"):
            BucketLock(run_dir).take()
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("operation", range(8))
def test_who_is_killed_while_it_takes_a_stale_lock_is_replaced(
    operation, run_dir, buckets, monkeypatch
):
    write(run_dir, "dead")
    done = 0

    def killed(*_):
        nonlocal done
        done += 1
        if done > operation:
            raise ConnectionError("killed")

    _HERE.host = "killed"
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "before", staticmethod(killed))
        with contextlib.suppress(OSError, UserError):
            BucketLock(run_dir).take()
    _HERE.host = "here"

    lock = BucketLock(run_dir)
    lock.take()

    assert run_lock.read(run_dir)["host"] == "here"
    lock.release()
    assert run_lock.read(run_dir) is None


def test_the_lock_is_refreshed_and_released(run_dir, buckets, monkeypatch):
    monkeypatch.setattr(bucket_lock, "REFRESH_SECONDS", 0.05)
    lock = BucketLock(run_dir)
    lock.take()
    first = objects.read_or_none(run_dir / run_lock.FILE)
    assert lock._changes(first)
    lock.release()
    assert buckets.store == {}


def test_who_has_lost_the_lock_says_so_and_leaves_it(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(bucket_lock, "REFRESH_SECONDS", 0.05)
    lock = BucketLock(run_dir)
    lock.take()
    content = write(run_dir, "elsewhere")
    lock._thread.join(10)
    assert "is not this process's any more" in capsys.readouterr().err
    lock.release()
    assert objects.read_or_none(run_dir / run_lock.FILE) == content
