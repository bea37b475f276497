"""What a run directory tells of its run, in ten lines; nothing is loaded or changed."""

import collections
import pathlib
import shutil
import time

from fmjax import run_dir as run_dirs
from fmjax import run_lock
from fmjax.objectives.terms import UNITS
from fmjax.run_lock import spell_seconds
from fmjax.training import bad_step_log, events, metrics
from fmjax.training.saved_state import FOLDER, saved_steps


def status(run_dir: pathlib.Path, trust: bool = False) -> list[str]:
    """Lines on what the run is, how far, how fast, what was saved and what went wrong.

    Args:
      run_dir: what `fmjax train` or `fmjax import` wrote.
      trust: the stored config may import code.

    Raises:
      UserError: it is no run directory.
    """
    experiment = run_dirs.load_experiment(run_dir, trust)
    objective = experiment.objective
    told, steps = events.read(run_dir), experiment.train.steps
    lines = metrics.read(run_dir) if (run_dir / metrics.FILE).is_file() else []
    train = [line for line in lines if line["split"] == "train"]
    saved, bad = saved_steps(run_dir), bad_step_log.read(run_dir)
    step = max([line["step"] for line in lines] + saved, default=0)
    rows = {
        "run": f"{objective.gin_name} of {objective.model.gin_name}"
        + (f", on {experiment.data.train.gin_name}" if experiment.data else ""),
        "state": _state(run_dir, told, saved, steps),
        "progress": f"step {step:,} of {steps:,} ({step / max(steps, 1):.0%})",
        "speed": _speed(train, steps - step),
        "loss": _losses(lines),
        "saved": _saved(run_dir, saved),
        "starts": _starts(told),
        "trouble": _trouble(told, bad),
        "restart": _restart(saved, bad, steps),
        "disk": _disk(run_dir),
    }
    return [str(run_dir)] + [f"  {name:9}{text}" for name, text in rows.items()]


def _state(run_dir: pathlib.Path, told: list, saved: list[int], steps: int) -> str:
    owner, alive = run_lock.read(run_dir), run_lock.is_alive(run_dir)
    if owner and alive is not False:
        age = time.time() - (run_dir / run_lock.FILE).stat().st_mtime
        doubt = "" if alive else "; only there can be seen whether it still does"
        return (
            f"process {owner.get('pid')} on {owner.get('host')} trains it, last heard "
            f"{spell_seconds(age)} ago{doubt}"
        )
    if saved and saved[-1] >= steps:
        return "finished"
    if not told:
        return "never started"
    last = told[-1]
    if last["kind"] in ("interrupted", "diverged", "hung"):
        return f"{last['kind']} at step {last['step']:,}"
    return "ended without a word, as where it was killed"


def _speed(train: list[dict], left: int) -> str:
    if not train:
        return "not known yet"
    last = train[-1]
    unit = next(unit for unit in UNITS if f"{unit}_per_second" in last)
    seconds = last["step_seconds"]
    text = f"{last[f'{unit}_per_second']:,.0f} {unit}/s, {seconds:.3g} s a step"
    if last.get("mfu") is not None:
        text += f", MFU {last['mfu']:.1%}"
    if left > 0:
        text += f"; some {spell_seconds(left * seconds)} left"
    return text


def _losses(lines: list[dict]) -> str:
    newest = {line["split"]: line for line in lines}
    return (
        ", ".join(
            f"{split} {line['loss']:.4f} at step {line['step']:,}"
            if line["loss"] is not None
            else f"{split} not finite at step {line['step']:,}"
            for split, line in newest.items()
        )
        or "none yet"
    )


def _saved(run_dir: pathlib.Path, saved: list[int]) -> str:
    if not saved:
        return "nothing yet"
    age = time.time() - (run_dir / FOLDER / str(saved[-1])).stat().st_mtime
    return f"steps {', '.join(map(str, saved))}; the last {spell_seconds(age)} ago"


def _starts(told: list) -> str:
    counts = collections.Counter(event["kind"] for event in told)
    count = counts["started"] + counts["resumed"]
    if not count:
        return "none"
    resumed = [event["step"] for event in told if event["kind"] == "resumed"]
    text = (
        f"{count}, the first {time.strftime('%F %T', time.localtime(told[0]['time']))}"
    )
    return text + (f"; resumed from step {resumed[-1]:,}" if resumed else "")


def _trouble(told: list, bad: list) -> str:
    kinds = ("save failed", "damaged checkpoint", "rollback", "hung", "diverged")
    found = [event for event in told if event["kind"] in kinds]
    counts = collections.Counter(event["kind"] for event in found)
    skipped = sum(record["action"] == "skip" for record in bad)
    texts = [f"{kind} ×{count}" for kind, count in counts.items()]
    if skipped:
        texts.append(f"steps skipped ×{skipped}")
    if not texts:
        return "none"
    return ", ".join(texts) + (f"; last: {found[-1]['text']}" if found else "")


def _restart(saved: list[int], bad: list, steps: int) -> str:
    if saved and saved[-1] >= steps:
        return "would find it finished and change nothing"
    start = f"would continue from step {saved[-1]:,}" if saved else "would start anew"
    ends = [record["step"] for record in bad if record["action"] == "stop"]
    if ends:
        start += (
            f", and stop at step {ends[-1]:,} again unless bad_steps or the schedule "
            "change (--override)"
        )
    return start


def _disk(run_dir: pathlib.Path) -> str:
    size = sum(f.lstat().st_size for f in run_dir.rglob("*") if f.is_file())
    return (
        f"{size / 1e9:,.2f} GB here, {shutil.disk_usage(run_dir).free / 1e9:,.0f} free"
    )
