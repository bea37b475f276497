"""The record of a run: what the files of its directory say, read as they grow.

Nothing is written. The run may create and delete files meanwhile, and the content of
the files is not trusted.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from fmjax.config.load import StoredConfig
from fmjax.errors import UserError
from fmjax.run import directory as run_dirs
from fmjax.run import lock as run_lock
from fmjax.run.curves import Curves, as_number
from fmjax.run.lock import format_seconds
from fmjax.storage import objects
from fmjax.storage.paths import given_path
from fmjax.training.checkpoint.saved_state import parameter_count, saved_steps
from fmjax.training.faults import bad_step_log
from fmjax.training.reporting import events, goodput, metrics, starts
from fmjax.training.reporting.goodput import Account
from fmjax.training.reporting.json_lines import Tail

RUNNING, UNKNOWN, FINISHED, NOT_EVALUATED, NOT_STARTED, KILLED = (
    "running",
    "unknown",
    "finished",
    "not evaluated",
    "not started",
    "killed",
)
# States in which no process works on the run any more.
_ENDS = ("interrupted", "diverged", "hung")


class RunState(NamedTuple):
    """The state of a run.

    Attributes:
      kind: one of the names above, or "interrupted", "diverged" or "hung".
      text: the same in a sentence.
    """

    kind: str
    text: str


class RunRecord:
    """What the files of a run directory say.

    Args:
      run_dir: the directory; it need not exist yet, nor hold any file.

    Attributes:
      run_dir: as given.
      config: of the run; None if it cannot be read.
      error: why it cannot be read; None if it can.
      steps: updates of the whole run; None if the config does not say.
      curves: of its metrics.
      events: lines of events.jsonl.
      starts: lines of starts.jsonl; empty for runs of earlier versions.
      bad: records of bad steps.
      account: of the run's time.
      spent: by the time at which a start began, the seconds that it has taken so far.
      saved: steps of the checkpoints.
    """

    def __init__(self, run_dir: str | os.PathLike):
        self.run_dir = given_path(run_dir)
        self.config: StoredConfig | None = None
        self.error: UserError | None = None
        self._changed: float | None = None
        self.curves, self.account = Curves(), Account()
        self.events: list[dict[str, Any]] = []
        self.starts: list[dict[str, Any]] = []
        self.bad: list[dict[str, Any]] = []
        self.spent: dict[float, float] = {}
        self.saved: list[int] = []
        self._tails = {
            module.FILE: Tail(self.run_dir / module.FILE, module.FIELDS)
            for module in (metrics, events, goodput, starts)
        }
        self.refresh()

    def refresh(self) -> None:
        """Reads what is new in the files."""
        self._read_config()
        for anew, lines in self._tails[metrics.FILE].chunks():
            self.curves = Curves() if anew else self.curves
            for line in _plausible(lines, "step"):
                self.curves.add(line)
        for anew, lines in self._tails[events.FILE].chunks():
            kept = [] if anew else self.events
            self.events = kept + _plausible(lines, "step", "time")
        for anew, lines in self._tails[starts.FILE].chunks():
            kept = [] if anew else self.starts
            self.starts = kept + _plausible(lines, "step", "began", "devices")
        for anew, lines in self._tails[goodput.FILE].chunks():
            if anew:
                self.account, self.spent = Account(), {}
            for line in _plausible(lines, "step", "time", "began"):
                if goodput.has_seconds(line):
                    self.account.add(line)
                    self.spent[line["began"]] = sum(line["seconds"].values())
        # A network file system may fail for a moment.
        with contextlib.suppress(OSError):
            self.bad = _plausible(bad_step_log.read(self.run_dir), "step")
            self.saved = saved_steps(self.run_dir)

    def checked(self) -> "RunRecord":
        """The record itself; raises `error` if its config cannot be read."""
        if self.error is not None:
            raise self.error
        return self

    @property
    def bindings(self) -> Mapping[tuple[str, str], str]:
        """The config as text: (configurable, field) → value; empty if unreadable."""
        return self.config.bindings if self.config else {}

    @property
    def steps(self) -> int | None:
        """Updates of the whole run."""
        text = self.bindings.get(("train", "steps"), "")
        return int(text) if _is_steps(text) else None

    @property
    def step(self) -> int:
        """Updates done, as far as was written."""
        return max([self.curves.last_step, *self.saved])

    @property
    def objective(self) -> str | None:
        """Gin name of the objective, without its scope; None if not bound."""
        return _bare(self._refers("experiment", "objective"))

    @property
    def model(self) -> str | None:
        """Gin name of the model."""
        return _bare(self._refers(self._refers("experiment", "objective"), "model"))

    @property
    def task(self) -> str | None:
        """Gin name of the task that is trained on."""
        return _bare(self._refers(self._refers("experiment", "data"), "train"))

    @property
    def parameters(self) -> int | None:
        """Number of parameters, from the last start or a checkpoint."""
        count = self.starts[-1].get("parameters") if self.starts else None
        if as_number(count) is not None:
            return int(count)
        return parameter_count(self.run_dir, self.saved[-1]) if self.saved else None

    @property
    def device_seconds(self) -> float | None:
        """Seconds times devices over all starts; None if a start is not recorded."""
        devices = {start["began"]: start["devices"] for start in self.starts}
        if not self.spent or not self.spent.keys() <= devices.keys():
            return None
        return sum(spent * devices[began] for began, spent in self.spent.items())

    @property
    def seconds_left(self) -> float | None:
        """By the step time of the last line; None if unknown or nothing is left."""
        last = self.curves.newest.get("train", {})
        seconds = as_number(last.get("step_seconds"))
        left = (self.steps or 0) - self.step
        return left * seconds if left > 0 and seconds is not None else None

    @property
    def evaluated(self) -> bool:
        """Whether the evaluation after the last checkpoint's step is recorded."""
        return bool(self.saved) and self._noted("finished", self.saved[-1])

    @property
    def complete(self) -> bool:
        """Whether the last checkpoint is of the last step, or of an early stop."""
        if not self.saved or self.steps is None:
            return False
        last = self.saved[-1]
        return last >= self.steps or self._noted("stopped early", last)

    def _noted(self, kind: str, step: int) -> bool:
        return any((e["kind"], e["step"]) == (kind, step) for e in self.events)

    @property
    def state(self) -> RunState:
        """Whether a process trains it, or how it ended.

        Raises:
          UserError: the lock is not a regular file, or may not be read.
        """
        owner = run_lock.read(self.run_dir)
        alive = run_lock.is_alive(self.run_dir)
        if owner and alive is not False:
            seconds = seconds_since(self.run_dir / run_lock.FILE)
            age = "a moment" if seconds is None else format_seconds(seconds)
            doubt = (
                "" if alive else "; whether it is alive can be seen only on that host"
            )
            old = not alive and seconds is not None and seconds > run_lock.STALE_SECONDS
            return RunState(
                UNKNOWN if old else RUNNING,
                f"process {owner.get('pid')} on {owner.get('host')} trains it; lock "
                f"updated {age} ago{doubt}",
            )
        if self.complete:
            if self.evaluated:
                return RunState(FINISHED, "finished")
            return RunState(NOT_EVALUATED, "all steps done, last evaluation missing")
        if not self.events:
            return RunState(NOT_STARTED, "never started")
        last = self.events[-1]
        if last["kind"] in _ENDS:
            return RunState(last["kind"], f"{last['kind']} at step {last['step']:,}")
        return RunState(KILLED, "ended without a record; probably killed")

    def _read_config(self) -> None:
        file = self.run_dir / run_dirs.CONFIG
        try:
            changed = objects.modified(file)
        except OSError:
            changed = None
        if changed is not None and changed == self._changed:
            return
        try:
            self.config, self.error = run_dirs.stored_config(self.run_dir), None
            if self.steps is None:
                text = self.bindings.get(("train", "steps"), "")
                raise UserError(
                    f"{file.name}: train.steps = {text:.50}: expected a number."
                )
        except UserError as error:
            self.error = error
        self._changed = changed

    def _refers(self, owner: str | None, field: str) -> str | None:
        """What `owner.field = @name()` refers to, with its scope."""
        text = self.bindings.get((owner, field), "") if owner else ""
        return text[1:-2] if text.startswith("@") else None


def seconds_since(file: pathlib.Path) -> float | None:
    """Since a file was written; None if it is gone, as the run may remove it."""
    try:
        return time.time() - objects.modified(file)
    except OSError:
        return None


def printable(text: str) -> str:
    """Text with control characters replaced, which could be terminal commands."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _is_steps(text: str) -> bool:
    return text.isdecimal() and len(text) <= 18


def _bare(reference: str | None) -> str | None:
    return reference.rsplit("/", 1)[-1] if reference else None


def _plausible(records: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The records in which the named values can be steps or times."""
    return [
        record
        for record in records
        if all(0 <= _or(as_number(record.get(name)), -1.0) < 1e11 for name in names)
    ]


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
