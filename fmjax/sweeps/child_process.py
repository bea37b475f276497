"""A command in a process of its own, which ends with the sweep that started it."""

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

_CHILD = (sys.executable, "-m", "fmjax.sweeps.child")
_LONGEST_ERROR = 300


class ChildProcess:
    """A command that has been started.

    Args:
      words: of the command.
      log: file that what it prints is appended to.
      environment: variables that it has besides those of this process.
    """

    def __init__(
        self, words: Sequence[str], log: pathlib.Path, environment: Mapping[str, str]
    ):
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._printed = out.tell()
            self._process = subprocess.Popen(
                [*_CHILD, str(os.getpid()), *words],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Out of the terminal's group: Ctrl-C reaches it through the sweep.
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def tell_to_stop(self) -> None:
        """Tells it to save and end."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self, seconds: float) -> None:
        """Waits for it, and kills it after so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def error(self, code: int) -> str:
        """What it printed last, as a sentence.

        Args:
          code: its exit code.
        """
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (the machine may have run out of memory)" if code == -9 else ""
            return f"killed by {name}{hint}"
        with self._log.open("rb") as log:
            log.seek(self._printed)
            lines = log.read().decode(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("fmjax: ")]
        # An exception's own line is the last that is not indented.
        raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(?::|$)", line)]
        found = (said or raised or [line for line in lines if line.strip()])[-1:]
        text = found[0].removeprefix("fmjax: ") if found else f"exit code {code}"
        return text[:_LONGEST_ERROR]
