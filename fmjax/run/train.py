"""Training an experiment in a run directory: a new run, or the rest of one."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import jax

from fmjax.errors import UserError
from fmjax.run import directory as run_dirs
from fmjax.run import lock as run_lock
from fmjax.run import registry
from fmjax.run.bucket_lock import BucketLock
from fmjax.run.lock import RunLock
from fmjax.storage.objects import local_draft
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.checkpoint.saved_state import Damaged, SavedState, saved_steps
from fmjax.training.experiment import Experiment
from fmjax.training.faults.watchdog import warn
from fmjax.training.outcome import Outcome
from fmjax.training.parametrize import resolve
from fmjax.training.start import Continued, FromRuns, Initialized, Start
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

    def store(references: Sequence[Reference]) -> None:
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
        for reference in references:
            registry.keep_for(folder, as_path(reference.run), reference.step)

    try:
        return train_experiment(
            experiment,
            folder,
            config_text,
            start=_start(experiment, folder, trust),
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


def _start(experiment: Experiment, folder: pathlib.Path, trust: bool) -> Start:
    """Where a run takes parameters from that it does not initialize or hold."""
    steps = saved_steps(folder)
    if not steps:
        wanted = experiment.init_from
        return FromRuns([run_dirs.source_of(each, trust) for each in wanted])
    if experiment.peft is not None:
        for step in reversed(steps):
            # All damaged ones are reported where the state is read.
            with contextlib.suppress(Damaged):
                saved = SavedState(folder, step)
                places = [each.run for each in experiment.init_from]
                found = [_found(each, saved, places) for each in saved.references]
                return Continued(saved, found)
    return Initialized()


def _found(reference: Reference, saved: SavedState, places: list[str]) -> Reference:
    """The reference, with where the other run is if it was moved."""
    if reference.step in saved_steps(as_path(reference.run)):
        return reference
    for run in places:
        elsewhere = dataclasses.replace(reference, run=run)
        with contextlib.suppress(UserError):
            saved.other(elsewhere)
            return elsewhere
    return reference
