"""The lock of a run directory: lock.json names the process that trains there."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from typing import Any

from fmjax.errors import UserError
from fmjax.storage.objects import os_errors
from fmjax.storage.paths import is_bucket

FILE = "lock.json"
REFRESH_SECONDS = 5.0
# A process on another host can be judged only by the modification time of its lock, and
# clocks differ. If that time does not change for so long, the lock is stale. In buckets
# the content changes instead.
STALE_SECONDS = 60.0


class RunLock:
    """Locks a run directory for this process; a thread updates the lock's time.

    A lock of this host is stale once its process has ended, a lock of another host once
    its modification time has not changed for STALE_SECONDS.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._file = run_dir / FILE
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def take(self) -> None:
        """Locks the directory.

        Raises:
          UserError: another process holds the lock; the message names it and its age.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_name(f".{FILE}.guard").open("w") as guard:
            # If two processes find a stale lock, only the first may take it.
            with contextlib.suppress(OSError):
                fcntl.flock(guard, fcntl.LOCK_EX)
            refuse_if_taken(self._file.parent)
            temporary = self._file.with_name(f"{FILE}.{os.getpid()}")
            temporary.write_text(json.dumps(own()), encoding="utf-8")
            os.replace(temporary, self._file)
        self._thread.start()

    def release(self) -> None:
        """Unlocks the directory."""
        self._ended.set()
        if is_own(read(self._file.parent)):
            self._file.unlink(missing_ok=True)

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                os.utime(self._file)
            except OSError:
                # The file system may be back before the lock counts as stale.
                continue


def refuse_if_taken(run_dir: pathlib.Path, at_once: bool = False) -> None:
    """Refuses a directory that a live process has locked.

    Args:
      run_dir: the run directory.
      at_once: whether to accept the lock of another host; to judge it takes up to
        STALE_SECONDS.

    Raises:
      UserError: a live process holds the lock.
    """
    owner = read(run_dir)
    if owner is None:
        return
    if owner.get("host") == socket.gethostname():
        alive = owner.get("started") == _started(owner.get("pid", 0))
        if not alive or is_own(owner):
            return
    elif at_once or not _is_fresh(run_dir / FILE):
        return
    else:
        # Another process may have taken a stale lock meanwhile.
        owner = read(run_dir) or owner
    age = time.time() - owner.get("since", 0)
    raise UserError(
        f"{run_dir} is in use: process {owner.get('pid')} on {owner.get('host')} has "
        f"trained there for {format_seconds(age)}. Use another --run_dir, or end that "
        "process first."
    )


def read(run_dir: pathlib.Path) -> dict[str, Any] | None:
    """The owner of the lock: host, pid, started and since.

    Returns:
      None if there is no lock; an empty dict if its content is not valid.

    Raises:
      UserError: the lock is not a regular file, or may not be read.
    """
    try:
        with os_errors(run_dir):
            content = (run_dir / FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{run_dir / FILE} cannot be read: {error.strerror or error}; expected the "
            "lock file of a run. Remove it if no process trains in this directory."
        ) from error
    return parsed(content)


def parsed(content: bytes | None) -> dict[str, Any] | None:
    """The owner that a lock's content names, as `read` gives it."""
    if content is None:
        return None
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    kinds = {"host": str, "pid": int, "started": str, "since": (int, float)}
    known = isinstance(owner, dict) and all(
        isinstance(owner.get(name), kind) for name, kind in kinds.items()
    )
    # Larger numbers are no time, and would make the age unreadable.
    return owner if known and abs(owner["since"]) < 1e15 else {}


def own() -> dict[str, Any]:
    """The lock's content if this process holds it."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": _SINCE,
    }


def is_own(owner: dict[str, Any] | None) -> bool:
    """Whether this process is the owner that `read` gave."""
    return owner is not None and {name: owner.get(name) for name in own()} == own()


def format_seconds(seconds: float) -> str:
    """A duration as text, in days, h, min or s: "3 min"."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def is_alive(run_dir: pathlib.Path) -> bool | None:
    """Whether the lock's process is alive; None if it is on another host."""
    owner = read(run_dir)
    if owner is None:
        return False
    if owner.get("host") == socket.gethostname():
        return owner.get("started") == _started(owner.get("pid", 0))
    return None


def _is_fresh(file: pathlib.Path) -> bool:
    """Whether the lock is refreshed within STALE_SECONDS."""
    print(
        f"{file} was written by another host; waiting up to {STALE_SECONDS:.0f} s to "
        "see whether it is still updated",
        file=sys.stderr,
        flush=True,
    )
    try:
        before = _mark(file)
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, REFRESH_SECONDS))
            if _mark(file) != before:
                return True
    except FileNotFoundError:
        pass
    return False


def _mark(file: pathlib.Path) -> bytes | int:
    """What a refresh of the lock changes."""
    if is_bucket(file):
        with os_errors(file):
            return file.read_bytes()
    return file.stat().st_mtime_ns


def _started(pid: int) -> str | None:
    """Start time of a process of this host, by the kernel; None if there is none."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        # A process that has ended stays listed until its parent asks, which the first
        # process of a container may never do.
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if pathlib.Path("/proc/self").exists():
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "?"


_SINCE = time.time()
