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

FILE = "lock.json"
REFRESH_SECONDS = 5.0
# Of a process on another host only the modification time of its lock can be seen, and
# clocks differ: a lock that was not touched for so long counts as stale.
STALE_SECONDS = 60.0


class RunLock:
    """Holds a run directory for this process; a thread keeps the lock's time fresh.

    On the host of its owner a lock is stale once that process is gone, on another once
    its time has stood still for STALE_SECONDS.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._file = run_dir / FILE
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def take(self) -> None:
        """Takes the directory.

        Raises:
          UserError: another run has it; the message names its owner and age.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_name(f".{FILE}.guard").open("w") as guard:
            # Of two processes that find a stale lock, the second sees the first one's.
            with contextlib.suppress(OSError):
                fcntl.flock(guard, fcntl.LOCK_EX)
            refuse_if_taken(self._file.parent)
            beside = self._file.with_name(f"{FILE}.{os.getpid()}")
            beside.write_text(json.dumps(_self()), encoding="utf-8")
            os.replace(beside, self._file)
        self._thread.start()

    def release(self) -> None:
        """Gives the directory back."""
        self._ended.set()
        if read(self._file.parent) == _self():
            self._file.unlink(missing_ok=True)

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                os.utime(self._file)
            except OSError:
                # The file system may be back before the lock counts as stale.
                continue


def refuse_if_taken(run_dir: pathlib.Path, at_once: bool = False) -> None:
    """Raises a UserError if a run that is alive holds the directory.

    To know that of another host's takes up to STALE_SECONDS; `at_once` lets those pass.
    """
    owner = read(run_dir)
    if owner is None:
        return
    if owner.get("host") == socket.gethostname():
        alive = owner.get("started") == _started(owner.get("pid", 0))
        if not alive or owner == _self():
            return
    elif at_once or not _is_fresh(run_dir / FILE):
        return
    age = time.time() - owner.get("since", 0)
    raise UserError(
        f"{run_dir} is in use: process {owner.get('pid')} on {owner.get('host')} has "
        f"trained there for {format_seconds(age)}. Expected one run a directory. Take "
        f"another --run_dir, or end that process first."
    )


def read(run_dir: pathlib.Path) -> dict[str, Any] | None:
    """What the lock says of its owner: host, pid, started, since.

    None without a lock, nothing of one that is torn.

    Raises:
      UserError: it is no file, or not this user's to read.
    """
    try:
        owner = json.loads((run_dir / FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{run_dir / FILE} cannot be read: {error.strerror}; expected the file "
            "that a run keeps there. Remove it if no run does."
        ) from error
    except (ValueError, RecursionError):
        return {}
    kinds = {"host": str, "pid": int, "started": str, "since": (int, float)}
    known = isinstance(owner, dict) and all(
        isinstance(owner.get(name), kind) for name, kind in kinds.items()
    )
    # A time in seconds from which an age can be computed.
    return owner if known and abs(owner["since"]) < 1e15 else {}


def format_seconds(seconds: float) -> str:
    """A length of time in one unit that suits it: "3 min"."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def is_alive(run_dir: pathlib.Path) -> bool | None:
    """Whether the lock's owner trains; None where only its own host could tell."""
    owner = read(run_dir)
    if owner is None:
        return False
    if owner.get("host") == socket.gethostname():
        return owner.get("started") == _started(owner.get("pid", 0))
    return None


def _is_fresh(file: pathlib.Path) -> bool:
    """Whether the file's time moves."""
    told = f"{file} is of another host; waiting {STALE_SECONDS:.0f} s for a sign of it"
    print(told, file=sys.stderr, flush=True)
    try:
        before = file.stat().st_mtime_ns
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, REFRESH_SECONDS))
            if file.stat().st_mtime_ns != before:
                return True
    except FileNotFoundError:
        pass
    return False


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": _SINCE,
    }


def _started(pid: int) -> str | None:
    """When a process of this host was started, by the kernel; None if there is none."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
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
