"""Evaluating runs of a sweep, such as on a test split, in processes of their own."""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

from fmjax.errors import UserError
from fmjax.sweeps.child_process import ChildProcess
from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.folder import SweepFolder
from fmjax.sweeps.gpus import environment_of

_POLL_SECONDS = 0.2


def evaluate_runs(
    config: SweepConfig,
    folder: SweepFolder,
    names: Iterable[str],
    bindings: Sequence[str],
    *,
    trust: bool,
    say: Callable[[str], None],
    command: Sequence[str],
) -> dict[str, dict[str, float]]:
    """What `fmjax eval` finds of runs with some bindings, `sweep.at_once` at a time.

    Results are kept in the folder, so that what was measured is not measured again.

    Args:
      config: of the sweep.
      folder: of the sweep.
      names: of run directories in `folder.trials`.
      bindings: NAME=VALUE, such as the files of a test split.
      trust: whether the runs' config may import code.
      say: called with a line for each run that is measured.
      command: that runs fmjax.

    Returns:
      The metrics of each run, by its name.

    Raises:
      UserError: evaluations failed; the others are kept.
    """
    names = list(names)
    place = folder.evaluations(_digest(bindings))
    files = {name: place / f"{name}.json" for name in names}
    waiting = [name for name in names if not files[name].exists()]
    done, errors = len(names) - len(waiting), {}
    active: dict[int, tuple[str, ChildProcess]] = {}
    if waiting:
        place.mkdir(parents=True, exist_ok=True)
        (place / "bindings.json").write_text(json.dumps([*bindings]) + "\n")
    try:
        while waiting or active:
            for slot in range(config.at_once):
                if waiting and slot not in active:
                    name = waiting.pop(0)
                    words = [*command, "eval", str(folder.trials / name), *bindings]
                    words += ["--json", str(files[name])]
                    words += ["--trust"] if trust else []
                    log = files[name].with_suffix(".log")
                    environment = environment_of(slot, config)
                    active[slot] = name, ChildProcess(words, log, environment)
            for slot, (name, process) in list(active.items()):
                if (code := process.poll()) is None:
                    continue
                del active[slot]
                if code:
                    log = files[name].with_suffix(".log")
                    errors[name] = f"{process.error(code)} (all it printed: {log})"
                else:
                    done += 1
                    say(f"{name}: evaluated, {done} of {len(names)}")
            time.sleep(_POLL_SECONDS)
    finally:
        for _, process in active.values():
            process.tell_to_stop()
        for _, process in active.values():
            process.end(_POLL_SECONDS)
    if errors:
        table = "\n".join(f"  {name}: {error}" for name, error in errors.items())
        raise UserError(f"{len(errors)} of {len(names)} evaluations failed:\n{table}")
    return {name: _read(file) for name, file in files.items()}


def _digest(bindings: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([*bindings]).encode()).hexdigest()[:12]


def _read(file: pathlib.Path) -> dict[str, float]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); expected what `fmjax eval --json` "
            "wrote. Remove it, and the run is measured again."
        ) from None
