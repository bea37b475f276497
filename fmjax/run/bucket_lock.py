"""The lock of a run directory in a bucket, by conditional writes.

A store has no modification times that can be set and no locks of files. The lock is
created if it is absent, which the store grants to one process, and written again now
and then. A stale lock is replaced by the process that creates an object named after
its content.
"""

import json
import pathlib
import sys
import threading
import time
from typing import Any

import xxhash

from fmjax.run import lock as run_lock
from fmjax.storage import objects

# Fewer requests than on a disk, and still four within the time of a stale lock.
REFRESH_SECONDS = 15.0


class BucketLock:
    """Locks a run directory in a bucket; as `fmjax.run.lock.RunLock`.

    A lock of this host is stale once its process has ended, one of another host once
    its content has not changed for `fmjax.run.lock.STALE_SECONDS`.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._run_dir = run_dir
        self._file = run_dir / run_lock.FILE
        self._ended = threading.Event()
        # Held while the lock is written or deleted.
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def take(self) -> None:
        """Locks the directory.

        Raises:
          UserError: another process holds the lock; the message names it and its age.
          OSError: the store does not answer.
        """
        while True:
            before = objects.read_or_none(self._file)
            run_lock.refuse_if_taken(self._run_dir)
            if before is None:
                if objects.create(self._file, _content()):
                    break
            elif self._replace(before):
                break
        self._thread.start()

    def release(self) -> None:
        """Unlocks the directory; an error of the store leaves a stale lock."""
        self._ended.set()
        with self._writing:
            try:
                if run_lock.is_own(run_lock.read(self._run_dir)):
                    objects.remove(self._file)
            except (OSError, ValueError):
                return

    def _replace(self, before: bytes) -> bool:
        """Replaces a stale lock; False if it has changed meanwhile."""
        seen, claims = before, []
        try:
            while True:
                name = f"{run_lock.FILE}.after-{xxhash.xxh3_128_hexdigest(seen)}"
                claim = self._file.with_name(name)
                if objects.create(claim, _content()):
                    claims.append(claim)
                    break
                # Another process is replacing it, or was killed while it did.
                if self._changes(before) or not (more := objects.read_or_none(claim)):
                    return False
                seen += more
                claims.append(claim)
            # Who replaces a lock deletes its claim only afterwards. So a lock that is
            # still the same has not been replaced by an earlier owner of this claim.
            if objects.read_or_none(self._file) != before:
                return False
            objects.write(self._file, _content())
            return True
        finally:
            for claim in claims:
                objects.remove(claim)

    def _changes(self, before: bytes) -> bool:
        """Whether the lock changes within STALE_SECONDS."""
        deadline = time.monotonic() + run_lock.STALE_SECONDS
        while time.monotonic() < deadline:
            if objects.read_or_none(self._file) != before:
                return True
            time.sleep(min(1.0, run_lock.REFRESH_SECONDS))
        return False

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                with self._writing:
                    if self._ended.is_set():
                        return
                    content = objects.read_or_none(self._file)
                    if not run_lock.is_own(run_lock.parsed(content)):
                        print(
                            f"{self._file} is not this process's any more: another "
                            "one took this for ended and trains there. End one.",
                            file=sys.stderr,
                            flush=True,
                        )
                        return
                    objects.write(self._file, _content())
            except OSError:
                # The store may be back before the lock counts as stale.
                continue


def _content() -> bytes:
    owner: dict[str, Any] = run_lock.own() | {"updated": time.time()}
    return json.dumps(owner).encode()
