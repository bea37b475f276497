"""Training an experiment in a run directory: a new run, or the rest of one."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax

from fmjax.errors import UserError
from fmjax.run import directory as run_dirs
from fmjax.run import lock as run_lock
from fmjax.run.bucket_lock import BucketLock
from fmjax.run.lock import RunLock
from fmjax.storage.objects import local_draft
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.saved_state import SavedState, saved_steps
from fmjax.training.experiment import Experiment
from fmjax.training.faults.watchdog import warn
from fmjax.training.init_from import Source
from fmjax.training.outcome import Outcome
from fmjax.training.parametrize import resolve
from fmjax.training.train import train as train_experiment


def train(
    experiment: Experiment,
    run_dir: str | os.PathLike,
    *,
    override: bool = False,
    trust: bool = False,
    on_hang: Callable[[str], None] = warn,
    began: float | None = None,
) -> Outcome:
    """Trains an experiment until its last step, or until SIGTERM or SIGINT.

    Args:
      experiment: from `fmjax.load_experiment`.
      run_dir: a new or empty directory, or the run directory of this experiment; a
        path, or an address such as gs://BUCKET/FOLDER.
      override: whether to continue a run whose config differs.
      trust: whether the stored config may import code.
      on_hang: called in another thread with a sentence about what hangs; by default
        prints a warning.
      began: when the process began, in seconds since 1970, for the run's goodput; None
        for now.

    Raises:
      UserError: a config, file or directory is wrong; raised before anything is
        compiled or overwritten.
      fmjax.training.faults.bad_step_log.Diverged: the loss is not finite.
      Others: see `fmjax.training.train.train`.
    """
    for part in ("data", "optimizer"):
        if getattr(experiment, part) is None:
            raise UserError(
                f"experiment.{part} has no value; training needs one. Bind it, or "
                "include runs/pretrain.gin."
            )
    folder = as_path(run_dir, "--run_dir")
    run_dirs.check_writable(folder)
    experiment = resolve(experiment)
    _check_same_peft(experiment, folder, trust)
    config_text = run_dirs.claim(folder, experiment, override, trust)

    first = jax.process_index() == 0
    lock = BucketLock(folder) if is_bucket(folder) else RunLock(folder)
    if first:
        run_lock.refuse_if_taken(folder, at_once=True)

    def store() -> None:
        if not first:
            return
        try:
            lock.take()
            run_dirs.write(folder, config_text)
            if (tokenizer := experiment.data.tokenizer()) is not None:
                with local_draft(folder / run_dirs.TOKENIZER) as draft:
                    tokenizer.save(draft)
        except OSError as error:
            raise run_dirs.cannot_write(folder, error.filename, error) from error

    try:
        return train_experiment(
            experiment,
            folder,
            config_text,
            sources=_sources(experiment, folder, trust),
            on_checked=store,
            on_hang=on_hang,
            changed_data=override,
            began=began,
        )
    finally:
        lock.release()


def _check_same_peft(experiment: Experiment, folder: pathlib.Path, trust: bool) -> None:
    """Raises a UserError if a run would continue with other adapters than it has."""
    if experiment.peft is None or not saved_steps(folder):
        return
    before = run_dirs.stored_experiment(folder, trust or bool(experiment.modules)).peft
    if before != experiment.peft:
        raise UserError(
            f"{folder} was trained with another experiment.peft: {before}, found "
            f"{experiment.peft}. Its adapters, their scales and its frozen parameters "
            "are as they were saved; expected the same, or another --run_dir with "
            "experiment.init_from."
        )


def _sources(experiment: Experiment, folder: pathlib.Path, trust: bool) -> list[Source]:
    """The runs that parameters are read from at this start."""
    steps = saved_steps(folder)
    if not steps:
        return [run_dirs.source_of(wanted, trust) for wanted in experiment.init_from]
    if experiment.peft is None:
        return []
    # Checkpoints name what is frozen, at the step where it was first read.
    known = SavedState(folder, steps[-1]).references
    found = []
    for wanted in experiment.init_from:
        source = run_dirs.source_of(wanted, trust)
        for reference in known:
            # Of a base that was moved the digest says whether it is the same.
            if _same_run(reference.run, wanted.run) or _is_gone(reference.run):
                pinned = dataclasses.replace(wanted, step=reference.step)
                source = dataclasses.replace(source, wanted=pinned)
        found.append(source)
    return found


def _same_run(one: str, other: str) -> bool:
    paths = as_path(one), as_path(other)
    if any(map(is_bucket, paths)):
        return str(paths[0]) == str(paths[1])
    return paths[0].resolve() == paths[1].resolve()


def _is_gone(run: str) -> bool:
    path = as_path(run)
    return not is_bucket(path) and not path.is_dir()
