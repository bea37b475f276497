"""Watching runs: their status, curves and events in a terminal, as they train."""

import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from fmjax.errors import UserError
from fmjax.evaluation.text_plot import plot, short
from fmjax.run.curves import as_number
from fmjax.run.record import (
    NOT_STARTED,
    RUNNING,
    UNKNOWN,
    RunRecord,
    RunState,
    printable,
)
from fmjax.run.status import parts, progress, speed, time_spent
from fmjax.storage.paths import given_path, is_bucket

REFRESH_SECONDS = 3.0
_STYLES = {
    RUNNING: "green",
    "finished": "blue",
    "interrupted": "yellow",
    "not evaluated": "yellow",
    "diverged": "red",
    "hung": "red",
    "killed": "red",
}
# The most important first, which small terminals show.
_FACTS = ("config", "speed", "loss", "state", "time", "devices", "run")
_FEWEST_FACTS = 3  # beside plots
_EVENTS, _FEWEST_EVENTS = 6, 2
_TALLEST, _LOWEST = 7, 2  # lines of a plot
_PLAIN_HEIGHT = 4  # lines of a plot where the height is not limited
_WIDE = 110  # columns from which on there are three plots beside each other


def watch(
    run_dirs: Sequence[str | os.PathLike],
    seconds: float = REFRESH_SECONDS,
    until_finished: bool = False,
) -> None:
    """Shows runs until Ctrl-C; once, if the output is not a terminal.

    Args:
      run_dirs: run directories; their runs need not have begun.
      seconds: between two looks at the files.
      until_finished: return once all runs have ended, for whatever reason; without a
        terminal nothing is printed before.

    Raises:
      UserError: a directory cannot be that of a run, now or later.
    """
    if not seconds > 0:
        raise UserError(f"--seconds {seconds}: expected a number above 0.")
    records = [RunRecord(_checked(run_dir)) for run_dir in run_dirs]
    console, live = Console(highlight=False), sys.stdout.isatty()
    try:
        if live:
            _show_live(records, console, seconds, until_finished)
        elif until_finished:
            while not _all_ended(records):
                time.sleep(seconds)
                _refresh(records)
    except KeyboardInterrupt:
        return
    console.print(View(records))


def _checked(run_dir: str | os.PathLike) -> pathlib.Path:
    path = given_path(run_dir)
    if is_bucket(path):
        return path
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a run directory.")
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"{path}: expected a run directory, or one that a run will make in a "
            "folder that exists."
        )
    return path


def _show_live(
    records: list[RunRecord], console: Console, seconds: float, until_finished: bool
) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(View(records, console.height), refresh=True)
            if until_finished and _all_ended(records):
                return
            time.sleep(seconds)
            _refresh(records)


def _refresh(records: list[RunRecord]) -> None:
    for record in records:
        record.refresh()


def _all_ended(records: list[RunRecord]) -> bool:
    # A lock of another host that is not refreshed may be that of a host which is slow.
    goes_on = (RUNNING, UNKNOWN, NOT_STARTED)
    return all(_state(record).kind not in goes_on for record in records)


class View:
    """A panel for each run, as wide as the terminal.

    Args:
      records: of the runs.
      height: lines that all panels may have; None for as many as they need.
    """

    def __init__(self, records: Sequence[RunRecord], height: int | None = None):
        self._records, self._height = records, height

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        share = None if self._height is None else self._height // len(self._records)
        for record in self._records:
            yield _panel(record, console, options, share)


def _panel(
    record: RunRecord, console: Console, options: ConsoleOptions, height: int | None
) -> Panel:
    inner = options.update(width=max(20, options.max_width - 4))
    state = _state(record)
    room = math.inf if height is None else height - 2

    def fits(*parts: RenderableType) -> bool:
        return len(console.render_lines(Group(*parts), inner)) <= room

    every, tallest = len(_FACTS), _PLAIN_HEIGHT if height is None else _TALLEST
    last = {count: _events(record, count) for count in range(_EVENTS, -1, -1)}
    # (facts, lines of a plot, events): the first that fits is taken.
    layouts = [
        (every, size, _FEWEST_EVENTS) for size in range(tallest, _LOWEST - 1, -1)
    ]
    layouts += [(count, _LOWEST, 0) for count in range(every, _FEWEST_FACTS - 1, -1)]
    layouts += [(count, 0, 0) for count in range(every, -1, -1)]
    for count, size, fewest in layouts:
        plots = _plots(record, inner.max_width, size) if size else []
        shown = [_facts(record, state, count), *plots]
        if fits(*shown, *last[fewest]):
            break
    shown += next((each for each in last.values() if fits(*shown, *each)), [])
    style = _STYLES.get(state.kind, "dim")
    badge = Text(f" {state.kind} ", f"{style} reverse")
    name = printable(str(record.run_dir))
    longest = inner.max_width - len(badge) - 4
    name = name if len(name) <= longest else f"…{name[len(name) - longest + 1 :]}"
    title = Text.assemble((name, "bold"), " ", badge)
    return Panel(Group(*shown), title=title, title_align="left", border_style=style)


def _state(record: RunRecord) -> RunState:
    try:
        return record.state
    except UserError as error:
        return RunState(UNKNOWN, str(error))


def _facts(record: RunRecord, state: RunState, count: int) -> Group:
    """Progress and the `count` most important kinds of fact, a line for each."""
    if record.config is None:
        reason = "no files yet" if not record.run_dir.is_dir() else str(record.error)
        return Group(Text(printable(reason), style="yellow"))
    rows = {
        "run": parts(record),
        "config": str(record.error or ""),
        "state": state.text if state.text != state.kind else "",
        "speed": speed(record),
        "devices": _devices(record),
        "time": time_spent(record.account),
        "loss": _losses(record),
    }
    table = Table.grid(Column(width=9), Column(overflow="fold", ratio=1), expand=True)
    for name, text in rows.items():
        if text and name in _FACTS[:count]:
            table.add_row(Text(name, style="dim"), Text(printable(text)))
    bar = Table.grid(Column(ratio=1), Column(no_wrap=True), expand=True, padding=(0, 1))
    total = max(record.steps or 0, 1)
    bar.add_row(ProgressBar(total, min(record.step, total)), Text(progress(record)))
    return Group(bar, table) if table.row_count else Group(bar)


def _devices(record: RunRecord) -> str:
    last = record.curves.newest.get("train", {})
    texts = []
    if record.starts:
        start = record.starts[-1]
        texts.append(f"{start['devices']} × {start.get('device_kind', 'device')}")
    if (waiting := as_number(last.get("waiting_for_data"))) is not None:
        texts.append(f"waiting for data {waiting:.0%}")
    if (peak := as_number(last.get("device_memory_peak"))) is not None:
        texts.append(f"peak memory {peak / 1e9:,.1f} GB")
    return ", ".join(texts)


def _losses(record: RunRecord) -> str:
    texts = []
    for split in ("train", "validation"):
        _, losses = record.curves.series(split, "loss")
        if len(losses):
            last = f"{losses[-1]:.4f}" if np.isfinite(losses[-1]) else "not finite"
            texts.append(f"{split} {last}")
    steps, losses = record.curves.series("validation", "loss")
    if np.isfinite(losses).any():
        lowest = int(np.nanargmin(losses))
        texts.append(f"best {losses[lowest]:.4f} at step {steps[lowest]:,}")
    return ", ".join(texts)


def _plots(record: RunRecord, width: int, height: int) -> list[RenderableType]:
    curves = record.curves
    if not curves.newest:
        return []
    unit = curves.unit
    wanted = [
        ("training loss", "train", "loss"),
        ("validation loss", "validation", "loss"),
        ("gradient norm", "train", "grad_norm"),
        ("learning rate", "train", "learning_rate"),
        (f"{unit}/s", "train", f"{unit}_per_second"),
        ("MFU", "train", "mfu"),
    ]
    if not np.isfinite(curves.series("train", "mfu")[1]).any():
        wanted[-1] = ("waiting for data", "train", "waiting_for_data")
    columns = 3 if width >= _WIDE else 2
    each = (width - 3 * (columns - 1)) // columns
    table = Table.grid(
        *(Column(width=each) for _ in range(columns)), padding=(0, 3, 0, 0)
    )
    cells = []
    for title, split, name in wanted:
        steps, values = curves.series(split, name)
        newest = values[np.isfinite(values)][-1:]
        head = Text(title, style="bold")
        if len(newest):
            head.append(f"  {short(newest[0])}", style="cyan")
        body = Text("\n".join(plot(steps, values, each, height)), no_wrap=True)
        body.highlight_regex("[\u2800-\u28ff]+", "cyan")
        cells.append(Group(head, body))
    for first in range(0, len(cells), columns):
        table.add_row(*cells[first : first + columns])
    return [Text(), table]


def _events(record: RunRecord, count: int) -> list[RenderableType]:
    last = record.events[-count:] if count else []
    if not last:
        return []
    table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
    for event in last:
        clock = time.strftime("%m-%d %H:%M", time.localtime(event["time"]))
        text = event["text"] or f"{event['kind']} at step {event['step']:,}"
        if event["text"] and event["kind"] not in event["text"]:
            text = f"{event['kind']}: {text}"
        table.add_row(Text(clock, style="dim"), Text(printable(text)))
    return [Text(), table]
