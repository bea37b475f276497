"""Actions on bad steps (skip, rollback, stop), recorded in bad_steps.jsonl."""

import json
import math
import pathlib
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils

from fmjax.storage import objects
from fmjax.storage.paths import as_path
from fmjax.training.bad_steps import NOT_FINITE, BadSteps
from fmjax.training.checkpoint.saver import CannotSave
from fmjax.training.reporting import json_lines

FILE = "bad_steps.jsonl"


class Diverged(RuntimeError):
    """A bad step that ends the run.

    Attributes:
      step: the step, counting from 1.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Rollback(Exception):
    """A rollback: the run must resume before its bad steps, without their batches.

    Attributes:
      step: the first bad step, counting from 1.
      record: for `BadStepLog.keep`, once everything after that step is removed.
    """

    def __init__(self, message: str, step: int, record: dict[str, Any]):
        super().__init__(message)
        self.step = step
        self.record = record


class BadStepLog:
    """Detects bad steps by their metrics, alike in all processes, and records them.

    Only the first process writes the file.

    Args:
      run_dir: the run directory, which has the file.
      start: the step that the run resumes from; records of later steps are deleted,
        except those of rollbacks.
      policy: what to do about bad steps.
    """

    def __init__(self, run_dir: pathlib.Path, start: int, policy: BadSteps):
        self._file = run_dir / FILE
        self._policy = policy
        self._writes = jax.process_index() == 0
        found = read(run_dir)
        self._records = [
            record
            for record in found
            if record["action"] == "rollback" or record["step"] <= start
        ]
        if self._writes and self._records != found:
            self._write()

    @property
    def passed_over(self) -> frozenset[int]:
        """Numbers of the batches that are skipped after rollbacks."""
        return frozenset(n for r in self._records for n in r["passed_over"])

    def check(self, step: int, batch: int, values: dict[str, Any]) -> None:
        """Checks the metrics of a step, and takes the policy's action on a bad one.

        Args:
          step: counting from 1.
          batch: number of its batch.
          values: "loss", "grad_norm" and, where the jitted step detects bad steps,
            "bad".

        Raises:
          Diverged: the run must end.
          Rollback: the run must go back to a checkpoint.
        """
        loss, norm = float(values["loss"]), float(values["grad_norm"])
        if "bad" in values:
            why = int(values["bad"])
        else:
            finite = math.isfinite(loss) and math.isfinite(norm)
            why = 0 if finite or self._policy.not_finite == "off" else NOT_FINITE
        if not why:
            return
        what = f"the loss of step {step} is {loss:.5g}, its gradient norm {norm:.5g}"
        record = {
            "step": step,
            "batch": batch,
            "why": "not finite" if why == NOT_FINITE else "spike",
            "loss": loss if math.isfinite(loss) else repr(loss),
            "grad_norm": norm if math.isfinite(norm) else repr(norm),
            "action": self._policy.action(why),
            "passed_over": [],
        }
        row = self._row(record)
        if record["action"] == "skip" and len(row) > self._policy.patience:
            record["action"] = "rollback"
        if record["action"] == "rollback":
            rollbacks = sum(r["action"] == "rollback" for r in self._records)
            if rollbacks >= self._policy.max_rollbacks:
                record["action"] = "stop"
                what += f", after {rollbacks} rollbacks"
            else:
                record["passed_over"] = [r["batch"] for r in row]
        if record["action"] == "rollback":
            raise Rollback(what, row[0]["step"], record)
        self.keep(record)
        if record["action"] == "stop":
            raise Diverged(what, step)

    def keep(self, record: dict[str, Any]) -> None:
        """Adds a record; that of a rollback is on disk before any process returns.

        Raises:
          CannotSave: the record of a rollback could not be written. Without it the run
            would train on the same batches and roll back again, without end.
        """
        self._records.append(record)
        if self._writes and (error := self._write()) and record["passed_over"]:
            raise CannotSave(f"{self._file} cannot be written: {error}") from error
        if record["action"] == "rollback" and jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"rollback {record['step']}")

    def _write(self) -> OSError | None:
        """Writes all records; returns an error, after which the next call retries."""
        content = "".join(map(_line, self._records)).encode()
        try:
            objects.write(self._file, content, sync=True)
        except OSError as error:
            print(f"{self._file} waits to be written: {error}", file=sys.stderr)
            return error
        return None

    def _row(self, last: dict[str, Any]) -> list[dict[str, Any]]:
        """The records of the consecutive bad steps that end with `last`."""
        row = [last]
        for record in reversed(self._records):
            if record["action"] != "skip" or record["step"] != row[0]["step"] - 1:
                break
            row.insert(0, record)
        return row


def read(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run's bad steps, in order."""
    fields = {"step": int, "batch": int, "action": str, "passed_over": list}
    return list(json_lines.read(as_path(run_dir) / FILE, fields))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
