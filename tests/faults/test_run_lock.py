"""Two runs never share a directory, and a lock of nobody holds nobody up."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from fmjax.errors import UserError
from fmjax.run import lock as run_lock
from fmjax.run.lock import RunLock


def write(run_dir: pathlib.Path, **owner) -> pathlib.Path:
    file = run_dir / run_lock.FILE
    file.write_text(json.dumps({"since": time.time() - 7200} | owner))
    return file


def test_another_process_is_refused_and_named(tmp_path):
    script = (
        "import pathlib, sys, time\n"
        "from fmjax.run.lock import RunLock\n"
        "RunLock(pathlib.Path(sys.argv[1])).take()\n"
        "print('taken', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"taken\n"
        assert run_lock.is_alive(tmp_path)
        with pytest.raises(UserError, match=rf"process {owner.pid} on .* for \d s"):
            RunLock(tmp_path).take()
        owner.kill()
    # Its lock is still there, and stale.
    assert (tmp_path / run_lock.FILE).exists()
    assert run_lock.is_alive(tmp_path) is False
    lock = RunLock(tmp_path)
    lock.take()
    assert run_lock.read(tmp_path)["pid"] == os.getpid()
    lock.release()
    assert not (tmp_path / run_lock.FILE).exists()


def test_a_process_that_has_the_number_of_a_dead_one_is_another(tmp_path):
    write(tmp_path, host=socket.gethostname(), pid=os.getppid(), started="1")
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


def test_a_lock_of_another_host_is_stale_once_its_time_stands_still(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 3.0)
    monkeypatch.setattr(run_lock, "REFRESH_SECONDS", 0.1)
    file = write(tmp_path, host="elsewhere", pid=1, started="1")
    assert run_lock.is_alive(tmp_path) is None
    ended = threading.Event()

    def refresh():
        while not ended.wait(0.1):
            os.utime(file)

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    with pytest.raises(UserError, match=r"process 1 on elsewhere .* 2 h"):
        RunLock(tmp_path).take()
    ended.set()
    thread.join()
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


def test_a_torn_lock_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 0.2)
    (tmp_path / run_lock.FILE).write_text('{"host": ')
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


def test_what_another_has_taken_is_not_released(tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    write(tmp_path, host="elsewhere", pid=1, started="1")
    lock.release()
    assert run_lock.read(tmp_path)["host"] == "elsewhere"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (119, "119 s"), (600, "10 min"), (1e5, "28 h")]
)
def test_lengths_of_time(seconds, text):
    assert run_lock.format_seconds(seconds) == text
