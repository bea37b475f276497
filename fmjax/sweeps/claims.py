"""Claims: which process works on which trial of a sweep.

A claim is a file beside the trials that its owner touches every few seconds, as the
lock of a run directory. That of a dead process is taken over: at once on the same
host, elsewhere once it has not been touched for a minute.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import threading
import time

from fmjax.run import lock as run_lock


class Claims:
    """The claims of this process on the trials of a sweep.

    A context manager: all claims are given back at its end.

    Args:
      folder: for the files of the claims.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._held: set[int] = set()
        self._seen: dict[int, tuple[int, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> "Claims":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        for number in list(self._held):
            self.give_back(number)

    def take(self, number: int) -> bool:
        """Claims a trial; False if a live process has it, or may be alive."""
        place = self._place(number)
        place.mkdir(exist_ok=True)
        with (place / "guard").open("w") as guard:
            # Of two processes that find the claim of a dead one, one may take it.
            with contextlib.suppress(OSError):
                fcntl.flock(guard, fcntl.LOCK_EX)
            if self._is_taken(number):
                return False
            file = place / run_lock.FILE
            temporary = file.with_name(f"{file.name}.{os.getpid()}")
            temporary.write_text(json.dumps(run_lock.own()), encoding="utf-8")
            os.replace(temporary, file)
        self._held.add(number)
        return True

    def give_back(self, number: int) -> None:
        """Ends the claim on a trial."""
        self._held.discard(number)
        (self._place(number) / run_lock.FILE).unlink(missing_ok=True)

    def _place(self, number: int) -> pathlib.Path:
        return self._folder / f"{number:04}"

    def _is_taken(self, number: int) -> bool:
        alive = run_lock.is_alive(self._place(number))
        if alive is not None:
            return alive
        try:
            changed = (self._place(number) / run_lock.FILE).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        # The clocks of two hosts differ: only a change tells that its owner lives.
        before, since = self._seen.get(number, (0, 0.0))
        if changed != before:
            self._seen[number] = changed, time.monotonic()
            return True
        return time.monotonic() - since < run_lock.STALE_SECONDS

    def _refresh(self) -> None:
        while not self._ended.wait(run_lock.REFRESH_SECONDS):
            for number in list(self._held):
                # The file system may be back before the claim counts as stale.
                with contextlib.suppress(OSError):
                    os.utime(self._place(number) / run_lock.FILE)
