"""The status of a run in a few lines, read from its directory.

Nothing is written. The run may create and delete files meanwhile, and the content of
the files is not trusted.
"""

import collections
import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

from fmjax.objectives.terms import UNITS
from fmjax.run.curves import as_number
from fmjax.run.lock import format_seconds
from fmjax.run.record import RunRecord, printable, seconds_since
from fmjax.storage import objects
from fmjax.storage.paths import is_bucket
from fmjax.training.checkpoint.bucket_steps import COMMITTED
from fmjax.training.checkpoint.saved_state import FOLDER
from fmjax.training.reporting import goodput
from fmjax.training.reporting.goodput import Account


def status(run_dir: str | os.PathLike) -> list[str]:
    """Lines of text: the run's parts, progress, speed, checkpoints and failures.

    The config is read as text, so the Python modules that it imports are not needed.

    Args:
      run_dir: a run directory.

    Raises:
      UserError: it is not a run directory.
    """
    record = RunRecord(run_dir).checked()
    log, saved = record.events, record.saved
    rows = {
        "run": parts(record),
        "state": record.state.text,
        "progress": progress(record),
        "speed": speed(record),
        "time": time_spent(record.account),
        "loss": _losses(record.curves.newest),
        "saved": _saved(record.run_dir, saved),
        "starts": _starts(log),
        "trouble": _trouble(log, record.bad),
        "restart": _restart(record),
        "disk": _disk(record.run_dir),
    }
    return [str(run_dir)] + [
        f"  {name:9}{printable(text)}" for name, text in rows.items()
    ]


def parts(record: RunRecord) -> str:
    """The gin names of the objective, its model and the task."""
    unbound = "(not bound)"
    text = f"{record.objective or unbound} of {record.model or unbound}"
    text += f", on {record.task}" if record.task else ""
    if record.config and record.config.modules:
        text += f"; imports {', '.join(record.config.modules)}"
    return text


def progress(record: RunRecord) -> str:
    """Steps done, of how many."""
    if record.steps is None:
        return f"step {record.step:,}"
    share = record.step / max(record.steps, 1)
    return f"step {record.step:,} of {record.steps:,} ({share:.0%})"


def speed(record: RunRecord) -> str:
    """Rate, step time, MFU and the time that is left."""
    last = record.curves.newest.get("train")
    if last is None:
        return "not known yet"
    figures = {name: as_number(value) for name, value in last.items()}
    speeds = {unit: figures.get(f"{unit}_per_second") for unit in UNITS}
    seconds = figures.get("step_seconds")
    texts = [f"{v:,.0f} {unit}/s" for unit, v in speeds.items() if v is not None][:1]
    if seconds is not None:
        texts.append(f"{seconds:.3g} s a step")
    texts += utilization(figures)
    text = ", ".join(texts) or "not known"
    if (left := record.seconds_left) is not None:
        text += f"; about {format_seconds(left)} left"
    return text


def utilization(figures: Mapping[str, float | None]) -> list[str]:
    """MFU in both conventions, where they are known."""
    names = {"mfu": "MFU", "causal_mfu": "causal MFU"}
    known = [(text, figures.get(name)) for name, text in names.items()]
    return [f"{text} {value:.1%}" for text, value in known if value is not None]


def time_spent(account: Account) -> str:
    """What the run's life was spent on, the largest part first."""
    total = account.total
    if total <= 0:
        return "not known yet"
    parts = sorted(account.seconds.items(), key=lambda part: -part[1])
    shares = ", ".join(
        f"{cause} {seconds / total:.0%}"
        for cause, seconds in parts
        if cause != goodput.STEPS and seconds >= 0.005 * total
    )
    text = f"goodput {account.goodput:.0%} of {format_seconds(total)}"
    return text + (f"; {shares}" if shares else "")


def _losses(newest: Mapping[str, Mapping[str, Any]]) -> str:
    texts = []
    for split, line in newest.items():
        if "loss" in line:
            loss = as_number(line["loss"])
            found = "not finite" if loss is None else f"{loss:.4f}"
            texts.append(f"{split} {found} at step {line['step']:,}")
    return ", ".join(texts) or "none yet"


def _saved(run_dir: pathlib.Path, saved: list[int]) -> str:
    if not saved:
        return "nothing yet"
    folder = run_dir / FOLDER / str(saved[-1])
    seconds = seconds_since(folder / COMMITTED if is_bucket(folder) else folder)
    age = "a moment" if seconds is None else format_seconds(seconds)
    return f"steps {', '.join(map(str, saved))}; the last {age} ago"


def _starts(log: list) -> str:
    counts = collections.Counter(event["kind"] for event in log)
    count = counts["started"] + counts["resumed"]
    if not count:
        return "none"
    resumed = [event["step"] for event in log if event["kind"] == "resumed"]
    text = (
        f"{count}, the first {time.strftime('%F %T', time.localtime(log[0]['time']))}"
    )
    return text + (f"; resumed from step {resumed[-1]:,}" if resumed else "")


def _trouble(log: list, bad: list) -> str:
    kinds = (
        "save failed", "damaged checkpoint", "rollback", "hung", "diverged",
        "evaluation failed",
    )  # fmt: skip
    found = [event for event in log if event["kind"] in kinds]
    counts = collections.Counter(event["kind"] for event in found)
    skipped = sum(record["action"] == "skip" for record in bad)
    texts = [f"{kind} ×{count}" for kind, count in counts.items()]
    if skipped:
        texts.append(f"steps skipped ×{skipped}")
    if not texts:
        return "none"
    return ", ".join(texts) + (f"; last: {found[-1]['text']}" if found else "")


def _restart(record: RunRecord) -> str:
    saved = record.saved
    if record.complete:
        if record.evaluated:
            return "would change nothing: the run is finished"
        return "would run the last evaluation"
    start = f"would continue from step {saved[-1]:,}" if saved else "would start anew"
    ends = [bad["step"] for bad in record.bad if bad["action"] == "stop"]
    if ends:
        start += (
            f" and stop again at step {ends[-1]:,}, unless bad_steps or the schedule "
            "is changed (--override)"
        )
    return start


def _disk(run_dir: pathlib.Path) -> str:
    if is_bucket(run_dir):
        return f"{objects.size_of(run_dir) / 1e9:,.2f} GB here"
    size = 0
    for folder, _, names in os.walk(run_dir):
        for name in names:
            # The run may have removed the file meanwhile.
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_size
    return (
        f"{size / 1e9:,.2f} GB here, {shutil.disk_usage(run_dir).free / 1e9:,.0f} free"
    )
