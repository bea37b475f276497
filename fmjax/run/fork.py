"""Forking a run: a new run directory that continues from one of its checkpoints."""

import os
import pathlib
import shutil
from collections.abc import Iterable

from fmjax.errors import UserError
from fmjax.run.best_step import Step, chosen_step
from fmjax.run.directory import CONFIG, TOKENIZER, config_file
from fmjax.storage import objects
from fmjax.storage.new_folder import new_folder
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.saved_state import FOLDER, saved_steps
from fmjax.training.reporting import events, metrics


def fork(
    run_dir: str | os.PathLike, new_dir: str | os.PathLike, step: Step = None
) -> int:
    """Copies a checkpoint of a run, and what led to it, to a new run directory.

    The new run continues with the parameters, the optimizer's state, the position in
    the data and the step of that checkpoint: trained with the same config, it ends with
    the same bits. With another one (`fmjax train --override`) it is a branch, such as
    the cooldown of a run with a constant learning rate. Tags, stage and the ids of
    trackers stay with the old run.

    Args:
      run_dir: the run directory; it may be training.
      new_dir: a new or empty directory, or an address in a bucket.
      step: of the checkpoint; None for the newest, "best" as of `fmjax.load`.

    Returns:
      The step.

    Raises:
      UserError: it is not a run directory or has no such checkpoint, or `new_dir` is
        not empty or cannot be written.
    """
    old = as_path(run_dir, "the run directory")
    config_file(old)  # Raises if it is not a run directory.
    step, steps = chosen_step(old, step), saved_steps(old)
    if not steps or (step is not None and step not in steps):
        has = f"its steps are {', '.join(map(str, steps))}" if steps else "it has none"
        raise UserError(f"{old} has no checkpoint of step {step}; {has}.")
    step = steps[-1] if step is None else step
    with new_folder(new_dir) as draft:
        try:
            copy_files(old, draft, (f"{FOLDER}/{step}", TOKENIZER, CONFIG))
        except OSError as error:
            raise UserError(
                f"checkpoint {step} of {old} cannot be copied: "
                f"{error.strerror or error}; if the run is training, it may just have "
                "been deleted for a newer one."
            ) from error
        for name in (metrics.FILE, metrics.TEXTS):
            content = objects.read_or_none(old / name)
            if content is not None:
                (draft / name).write_bytes(content)
                metrics.drop_after(draft / name, step)
        log = events.Events(draft, writes=True)
        log.note("forked", step, f"from {old}")
    return step


def copy_files(old: pathlib.Path, new: pathlib.Path, names: Iterable[str]) -> None:
    """Copies files and folders of a run directory, those that there are."""
    for name in names:
        _copy(old / name, new / name)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file or folder, if there is one, with its modes and times."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_bucket(source):
        if source.is_file():
            objects.download(source, target)
        elif source.is_dir():
            with objects.local_copy(source) as copied:
                shutil.copytree(copied, target)
    elif source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy2(source, target)
