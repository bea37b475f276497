"""Run directories that are written by hand, without training."""

import functools
import json
import pathlib
import time
from collections.abc import Iterable, Mapping

from fmjax.config.load import load_experiment
from fmjax.config.render import render

STARTED = time.time() - 1000.0


def write_run(
    run_dir: pathlib.Path,
    *bindings: str,
    metrics: Iterable[Mapping] = (),
    events: Iterable[Mapping] = (),
    saved: Iterable[int] = (),
    **more: Iterable[Mapping],
) -> pathlib.Path:
    """A run of the quickstart with the given lines of its files; checkpoints are empty.

    Args:
      run_dir: the directory to make.
      *bindings: of its config.
      metrics: lines of metrics.jsonl.
      events: lines of events.jsonl, whose text and time may be left out.
      saved: steps of checkpoints.
      **more: lines of other files: goodput, starts, texts.
    """
    run_dir.mkdir(parents=True)
    (run_dir / "config.gin").write_text(_config(bindings))
    for step in saved:
        (run_dir / "checkpoints" / str(step)).mkdir(parents=True)
    events = [{"text": "", "time": STARTED} | dict(event) for event in events]
    for name, lines in (more | {"metrics": metrics, "events": events}).items():
        append(run_dir / f"{name}.jsonl", lines)
    return run_dir


def append(file: pathlib.Path, lines: Iterable[Mapping]) -> None:
    """Appends JSON lines."""
    with file.open("a") as written:
        written.writelines(json.dumps(line) + "\n" for line in lines)


def train(step: int, loss: float | None, **values) -> dict:
    """A line of training metrics."""
    usual = {"tokens": 2048.0, "step_seconds": 0.5, "tokens_per_second": 4096.0}
    usual |= {"learning_rate": 1e-3, "grad_norm": 1.5, "flops": 1e12}
    usual["time"] = STARTED + step
    return {"step": step, "split": "train", "loss": loss} | usual | values


def validation(step: int, loss: float, **values) -> dict:
    """A line of validation metrics."""
    line = {"step": step, "split": "validation", "loss": loss, "time": STARTED + step}
    return line | values


def goodput(step: int, began: float = STARTED, **seconds: float) -> dict:
    """A line of goodput.jsonl; causes with "_" for " "."""
    causes = {name.replace("_", " "): value for name, value in seconds.items()}
    time = began + sum(seconds.values())
    return {"time": time, "began": began, "step": step, "seconds": causes}


@functools.cache
def _config(bindings: tuple[str, ...]) -> str:
    return render(load_experiment("quickstart.gin", bindings))
