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
from typing import Any

from fmjax.config.load import StoredConfig
from fmjax.errors import UserError
from fmjax.objectives.terms import UNITS
from fmjax.run import directory as run_dirs
from fmjax.run import lock as run_lock
from fmjax.run.lock import format_seconds
from fmjax.storage import objects
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.bucket_steps import COMMITTED
from fmjax.training.checkpoint.saved_state import FOLDER, saved_steps
from fmjax.training.faults import bad_step_log
from fmjax.training.reporting import events, goodput, metrics
from fmjax.training.reporting.goodput import Account


def status(run_dir: str | os.PathLike) -> list[str]:
    """Lines of text: the run's parts, progress, speed, checkpoints and failures.

    The config is read as text, so the Python modules that it imports are not needed.

    Args:
      run_dir: a run directory.

    Raises:
      UserError: it is not a run directory.
    """
    run_dir = as_path(run_dir)
    config = run_dirs.stored_config(run_dir)
    log = _plausible(events.read(run_dir), "step", "time")
    lines = metrics.read(run_dir) if (run_dir / metrics.FILE).is_file() else []
    lines = _plausible(lines, "step")
    train = [line for line in lines if line["split"] == "train"]
    bad = _plausible(bad_step_log.read(run_dir), "step")
    saved = saved_steps(run_dir)
    steps = _steps(config.bindings)
    step = max([line["step"] for line in lines] + saved, default=0)
    rows = {
        "run": _parts(config),
        "state": _state(run_dir, log, saved, steps),
        "progress": f"step {step:,} of {steps:,} ({step / max(steps, 1):.0%})",
        "speed": _speed(train, steps - step),
        "time": _time(run_dir),
        "loss": _losses(lines),
        "saved": _saved(run_dir, saved),
        "starts": _starts(log),
        "trouble": _trouble(log, bad),
        "restart": _restart(log, saved, bad, steps),
        "disk": _disk(run_dir),
    }
    return [str(run_dir)] + [
        f"  {name:9}{_printable(text)}" for name, text in rows.items()
    ]


def _steps(bindings: dict[tuple[str, str], str]) -> int:
    text = bindings.get(("train", "steps"), "")
    if not text.isdecimal() or len(text) > 18:
        raise UserError(f"config.gin: train.steps = {text:.50}: expected a number.")
    return int(text)


def _parts(config: StoredConfig) -> str:
    """The gin names of the objective, its model and the task."""

    def bound(owner: str | None, field: str) -> str | None:
        text = config.bindings.get((owner, field), "") if owner else ""
        return text[1:-2] if text.startswith("@") else None

    objective = bound("experiment", "objective")
    model = bound(objective, "model")
    task = bound(bound("experiment", "data"), "train")
    text = f"{_name(objective)} of {_name(model)}"
    text += f", on {_name(task)}" if task else ""
    if config.modules:
        text += f"; imports {', '.join(config.modules)}"
    return text


def _name(reference: str | None) -> str:
    return reference.rsplit("/", 1)[-1] if reference else "(not bound)"


def _plausible(records: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The records in which the named values can be steps or times."""
    return [
        record
        for record in records
        if all(0 <= _number(record, name, -1.0) < 1e11 for name in names)
    ]


def _number(line: dict[str, Any], name: str, otherwise: Any = None) -> Any:
    """A line's value if it is a finite number, else `otherwise`."""
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return otherwise
    return float(value) if abs(value) < 1e300 else otherwise


def _printable(text: str) -> str:
    """Text with control characters replaced, which could be terminal commands."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _age(file: pathlib.Path) -> str:
    """How long ago a file was written; the run may just have removed it."""
    try:
        return format_seconds(time.time() - objects.modified(file))
    except OSError:
        return "a moment"


def _state(run_dir: pathlib.Path, log: list, saved: list[int], steps: int) -> str:
    owner, alive = run_lock.read(run_dir), run_lock.is_alive(run_dir)
    if owner and alive is not False:
        age = _age(run_dir / run_lock.FILE)
        doubt = "" if alive else "; whether it is alive can be seen only on that host"
        return (
            f"process {owner.get('pid')} on {owner.get('host')} trains it; lock "
            f"updated {age} ago{doubt}"
        )
    if saved and saved[-1] >= steps:
        done = _evaluated(log, saved[-1])
        return "finished" if done else "all steps done, last evaluation missing"
    if not log:
        return "never started"
    last = log[-1]
    if last["kind"] in ("interrupted", "diverged", "hung"):
        return f"{last['kind']} at step {last['step']:,}"
    return "ended without a record; probably killed"


def _evaluated(log: list, step: int) -> bool:
    """Whether the last evaluation, at this step, is done."""
    return any((e["kind"], e["step"]) == ("finished", step) for e in log)


def _speed(train: list[dict], left: int) -> str:
    if not train:
        return "not known yet"
    last = train[-1]
    speeds = {unit: _number(last, f"{unit}_per_second") for unit in UNITS}
    seconds, mfu = _number(last, "step_seconds"), _number(last, "mfu")
    texts = [f"{v:,.0f} {unit}/s" for unit, v in speeds.items() if v is not None][:1]
    if seconds is not None:
        texts.append(f"{seconds:.3g} s a step")
    if mfu is not None:
        texts.append(f"MFU {mfu:.1%}")
    text = ", ".join(texts) or "not known"
    if left > 0 and seconds is not None:
        text += f"; about {format_seconds(left * seconds)} left"
    return text


def _time(run_dir: pathlib.Path) -> str:
    """What the run's life was spent on, the largest part first."""
    account = Account()
    for line in _plausible(goodput.read(run_dir), "step", "time", "began"):
        account.add(line)
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


def _losses(lines: list[dict]) -> str:
    newest = {line["split"]: line for line in lines if "loss" in line}
    texts = []
    for split, line in newest.items():
        loss = _number(line, "loss")
        found = "not finite" if loss is None else f"{loss:.4f}"
        texts.append(f"{split} {found} at step {line['step']:,}")
    return ", ".join(texts) or "none yet"


def _saved(run_dir: pathlib.Path, saved: list[int]) -> str:
    if not saved:
        return "nothing yet"
    folder = run_dir / FOLDER / str(saved[-1])
    age = _age(folder / COMMITTED if is_bucket(folder) else folder)
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


def _restart(log: list, saved: list[int], bad: list, steps: int) -> str:
    if saved and saved[-1] >= steps:
        if _evaluated(log, saved[-1]):
            return "would change nothing: the run is finished"
        return "would run the last evaluation"
    start = f"would continue from step {saved[-1]:,}" if saved else "would start anew"
    ends = [record["step"] for record in bad if record["action"] == "stop"]
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
