"""The runs in a folder: a table of what they are and how far they are."""

import dataclasses
import fnmatch
import json
import math
import operator
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fmjax.errors import UserError, suggest
from fmjax.evaluation.text_plot import short
from fmjax.run import registry
from fmjax.run.curves import as_number
from fmjax.run.directory import CONFIG
from fmjax.run.lock import format_seconds
from fmjax.run.record import UNKNOWN, RunRecord, printable, seconds_since
from fmjax.storage.paths import given_path
from fmjax.training.reporting import events, goodput, metrics

_PLAIN_WIDTH = 160  # columns of the table if the output is not a terminal
_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A run of the table; a value that is not known is None.

    Attributes:
      run: its path, as below the folder that was searched.
      state: as `fmjax status` tells it, in a word.
      step: updates done.
      steps: of the whole run.
      loss: of the last validation.
      best: lowest loss of a validation.
      model: gin name.
      objective: gin name.
      task: gin name of what it is trained on.
      parameters: their number.
      goodput: share of its time that went into steps, 0 … 1.
      age: days since it wrote a file.
      tags: of its registry.
      stage: of its registry.
      stage_step: step of the checkpoint with the stage.
      metrics: numbers of the last validation, by name.
      bindings: of its config, "OWNER.FIELD" → gin text.
      problem: what could not be read; "" for nothing.
    """

    run: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    best: float | None
    model: str | None
    objective: str | None
    task: str | None
    parameters: int | None
    goodput: float | None
    age: float | None
    tags: tuple[str, ...]
    stage: str | None
    stage_step: int | None
    metrics: dict[str, float]
    bindings: dict[str, str]
    problem: str


# Names of --filter and --sort; `tag` of a filter is one of the tags.
_NAMES = (
    "run", "state", "step", "steps", "loss", "best", "model", "objective", "task",
    "parameters", "goodput", "age", "tag", "stage",
)  # fmt: skip
_OPERATORS: dict[str, Callable] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne,
    "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_FILTER = re.compile(r"\s*([\w./]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")


def list_runs(
    folder: str | os.PathLike,
    filters: Sequence[str] = (),
    sort: str = "run",
    reverse: bool = False,
    out: str | None = None,
) -> None:
    """Prints a table of the runs in a folder.

    Args:
      folder: searched at any depth.
      filters: such as "loss<3.2": a name, one of = != < <= > >=, and a value; all
        must hold.
      sort: name of a column, or of a metric or binding; runs without it come last.
      reverse: whether the largest comes first.
      out: file for the rows as JSON, or "-" to print these instead of the table.

    Raises:
      UserError: there is no such folder, a filter is not understood, or the file
        cannot be written.
    """
    tests = [_parse(text) for text in filters]
    place = given_path(folder, "DIR")
    rows = [read_row(run, place) for run in registry.find_runs(place)]
    known = {*_NAMES} | {n for row in rows for n in (*row.metrics, *row.bindings)}
    for name in (sort, *(name for name, _, _ in tests)):
        if name not in known and rows:
            raise UserError(
                f"no run has {name!r}.{suggest(name, known)} Expected one of "
                f"{', '.join(_NAMES)}, a metric of validation, or a binding."
            )
    rows = [row for row in rows if all(_holds(row, *test) for test in tests)]
    missing = [row for row in rows if _value(row, sort) is None]
    rows = [row for row in rows if _value(row, sort) is not None]
    rows.sort(key=lambda row: _order(_value(row, sort)), reverse=reverse)
    rows += missing
    if out is not None:
        text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
        _write(out, text + "\n")
    if out == "-":
        return
    console = Console(
        width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False
    )
    if not rows:
        console.print(f"no runs in {place}" + (" fit" if tests else ""), markup=False)
        return
    console.print(_table(rows))
    for row in rows:
        if row.problem:
            problem = printable(f"{row.run}: {row.problem}")
            console.print(problem, markup=False, soft_wrap=True)


def read_row(run_dir: pathlib.Path, folder: pathlib.Path) -> Row:
    """What is known of a run.

    Args:
      run_dir: its directory.
      folder: that its name is relative to.
    """
    record = RunRecord(run_dir)
    problems = [str(record.error)] if record.error else []
    try:
        state = record.state.kind
    except UserError as error:
        state = UNKNOWN
        problems.append(str(error))
    try:
        kept = registry.read(run_dir)
    except UserError as error:
        kept = registry.Registry()
        problems.append(str(error))
    if kept.step is not None and kept.step not in record.saved:
        problems.append(f"the checkpoint in {kept.stage}, of step {kept.step}, is gone")
    _, losses = record.curves.series("validation", "loss")
    finite = losses[np.isfinite(losses)]
    last = record.curves.newest.get("validation", {})
    ages = [
        seconds_since(run_dir / name)
        for name in (CONFIG, metrics.FILE, events.FILE, goodput.FILE)
    ]
    known_ages = [age for age in ages if age is not None]
    name = run_dir.relative_to(folder) if run_dir != folder else run_dir.absolute().name
    found = {name: as_number(value) for name, value in last.items()}
    return Row(
        run=str(name),
        state=state,
        step=record.step,
        steps=record.steps,
        loss=as_number(last.get("loss")),
        best=float(finite.min()) if len(finite) else None,
        model=record.model,
        objective=record.objective,
        task=record.task,
        parameters=record.parameters,
        goodput=record.account.goodput if record.account.total else None,
        age=min(known_ages) / _DAY if known_ages else None,
        tags=kept.tags,
        stage=kept.stage,
        stage_step=kept.step,
        metrics={name: value for name, value in found.items() if value is not None},
        bindings={".".join(key): text for key, text in record.bindings.items()},
        problem="; ".join(problems),
    )


def _parse(text: str) -> tuple[str, str, str]:
    """(name, operator, value) of a filter."""
    found = _FILTER.fullmatch(text)
    if not found or not found[3]:
        raise UserError(
            f"--filter {text!r}: expected NAME, one of {' '.join(_OPERATORS)}, and a "
            "value, such as 'loss<3.2' or tag=baseline."
        )
    name, sign, value = found.groups()
    if name == "tag" and sign not in ("=", "!="):
        raise UserError(f"--filter {text!r}: expected = or != after tag.")
    if sign not in ("=", "!=") and _as_float(value) is None:
        raise UserError(f"--filter {text!r}: expected a number after {sign}.")
    return name, sign, value


def _holds(row: Row, name: str, sign: str, value: str) -> bool:
    """Whether a row passes a filter; texts may be patterns, such as run=small/*."""
    if name == "tag":
        found = any(fnmatch.fnmatchcase(tag, value) for tag in row.tags)
        return found == (sign == "=")
    known = _value(row, name)
    if known is None:
        return sign == "!="
    number, wanted = _as_float(known), _as_float(value)
    if number is not None and wanted is not None:
        return bool(_OPERATORS[sign](number, wanted))
    if sign not in ("=", "!="):
        return False
    # A binding's text has the marks of gin: 'rmsnorm', @adamw().
    bare = str(known).strip("'\"").removeprefix("@").removesuffix("()")
    same = any(fnmatch.fnmatchcase(text, value) for text in (str(known), bare))
    return same == (sign == "=")


def _value(row: Row, name: str) -> Any:
    if name == "tag":
        return ", ".join(row.tags) or None
    if name in _NAMES:
        return getattr(row, name)
    return row.metrics.get(name, row.bindings.get(name))


def _as_float(value: Any) -> float | None:
    """The number that a value or its text is; None for any other."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _order(value: Any) -> tuple[bool, Any]:
    """A key of sorting: numbers before texts."""
    number = _as_float(value)
    return (False, number) if number is not None else (True, str(value))


def _write(out: str, text: str) -> None:
    if out == "-":
        sys.stdout.write(text)
        return
    try:
        pathlib.Path(out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {out} cannot be written: {error.strerror}.") from None


def _table(rows: Sequence[Row]) -> Table:
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "best"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("model")
    table.add_column("objective")
    for name in ("size", "goodput", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tags")
    table.add_column("stage")

    for row in rows:
        share = f" {row.step / row.steps:.0%}" if row.steps else ""
        stage = f"{row.stage} at {row.stage_step:,}" if row.stage else ""
        cells = (
            row.run,
            row.state,
            f"{row.step:,}{share}",
            "" if row.loss is None else f"{row.loss:.4f}",
            "" if row.best is None else f"{row.best:.4f}",
            row.model or "",
            row.objective or "",
            "" if row.parameters is None else short(row.parameters),
            "" if row.goodput is None else f"{row.goodput:.0%}",
            "" if row.age is None else format_seconds(row.age * _DAY),
            ", ".join(row.tags),
            stage,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
