"""Run directories: claiming one for an experiment, and its stored config."""

import os
import pathlib
import tempfile
from collections.abc import Sequence

from fmjax.config.load import StoredConfig, load_stored, read_stored
from fmjax.config.render import differences, render
from fmjax.data.tokenizers.tokenizers import load_tokenizer
from fmjax.errors import UserError
from fmjax.run import lock as run_lock
from fmjax.storage import objects
from fmjax.storage.access import cannot_use, check_bucket
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.copy_plan import Source
from fmjax.training.experiment import Experiment
from fmjax.training.init_from import InitFrom

CONFIG = "config.gin"
TOKENIZER = "tokenizer"
# What an import keeps for exports of generation_config.json.
GENERATION = "generation.json"
# Of a run's files, what belongs to its model.
KEPT = (TOKENIZER, GENERATION)


def claim(
    run_dir: pathlib.Path, experiment: Experiment, override: bool, trust: bool = False
) -> str:
    """Checks that a directory can be used for an experiment; nothing is written.

    Args:
      run_dir: a new or empty directory, or a run directory.
      experiment: the experiment to train.
      override: whether a run with a different config may be continued.
      trust: whether the stored config may import code.

    Returns:
      The text of the config to store in the directory.

    Raises:
      UserError: it holds a run with a different config and `override` is False, or
        files that do not belong to a run.
    """
    stored = run_dir / CONFIG
    if stored.exists() and not override:
        before = stored_experiment(run_dir, trust or bool(experiment.modules))
        changed = differences(before, experiment, runtime=False)
        if changed:
            table = "\n".join(
                f"  {name}: {was or '(absent)'} → {now or '(absent)'}"
                for name, was, now in changed
            )
            raise UserError(
                f"{run_dir} holds a run with a different config:\n{table}\n"
                f"{_schedule_note(before, experiment)}"
                "Use another --run_dir, or add --override to continue the run with the "
                "new config."
            )
    elif not stored.exists() and run_dir.is_dir() and _others(run_dir):
        raise UserError(
            f"{run_dir} is not empty and holds no {CONFIG}, so it is not a run "
            "directory. Use another --run_dir."
        )
    return render(experiment)


def _schedule_note(before: Experiment, now: Experiment) -> str:
    """Explains how a new train.steps changes the schedule; "" if it does not."""
    old, new = before.train.steps, now.train.steps
    if old == new or before.optimizer is None:
        return ""
    schedule = before.optimizer.schedule
    if not schedule.reads_train_steps:
        return ""
    step = min(old, new)
    rates = (float(each.learning_rate(step)) for each in (before, now))
    was, becomes = (f"{rate:.3g}" for rate in rates)
    name = schedule.gin_name
    return (
        f"@{name}() depends on train.steps: the learning rate at step {step:,} was "
        f"{was} with {old:,} steps and is {becomes} with {new:,}. --override continues "
        "from the last checkpoint with the new learning rates. To extend runs without "
        "such a change, use a schedule that does not depend on train.steps, such as "
        "@constant().\n"
    )


def check_writable(run_dir: pathlib.Path) -> None:
    """Checks that the directory can be created, or written if it exists.

    A temporary folder is made in it, or in its nearest existing parent, and removed; in
    a bucket, an object.

    Raises:
      UserError: the file system refuses.
    """
    if is_bucket(run_dir):
        from fmjax.training.checkpoint.bucket_arrays import check_arrays

        check_bucket(run_dir, "--run_dir", f".{run_lock.FILE}.")
        check_arrays(run_dir, "--run_dir", f".{run_lock.FILE}.")
        return
    nearest = run_dir
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    try:
        # `_others` of another process of this run ignores names with this prefix.
        made = tempfile.mkdtemp(prefix=f".{run_lock.FILE}.", dir=nearest)
        os.rmdir(made)
    except OSError as error:
        raise cannot_write(run_dir, nearest, error) from None


def cannot_write(run_dir: pathlib.Path, place: str, error: OSError) -> UserError:
    """The error for a run directory that the file system does not let be written.

    Args:
      run_dir: the run directory.
      place: the file or folder that was refused.
      error: what the operating system raised.
    """
    if is_bucket(run_dir):
        return cannot_use(run_dir, "--run_dir", error)
    return UserError(
        f"--run_dir {run_dir} cannot be written ({place}: {error.strerror}); expected "
        "a directory that can be created or written. Use another --run_dir."
    )


def _others(run_dir: pathlib.Path) -> bool:
    # Another process of the same run may just be writing these.
    own = (f"{CONFIG}.tmp", run_lock.FILE, f".{run_lock.FILE}")
    return any(not path.name.startswith(own) for path in run_dir.iterdir())


def write(run_dir: pathlib.Path, config_text: str) -> None:
    """Stores the config in the run directory; an older one is replaced atomically."""
    run_dir.mkdir(parents=True, exist_ok=True)
    objects.write(run_dir / CONFIG, config_text.encode())


def stored_experiment(
    run_dir: pathlib.Path, trust: bool = False, bindings: Sequence[str] = ()
) -> Experiment:
    """The experiment of a run directory.

    Args:
      run_dir: the run directory.
      trust: whether its config may import code.
      bindings: strings "NAME=VALUE" that override the stored config.

    Raises:
      UserError: it is not a run directory, or its config imports code without `trust`.
    """
    return load_stored(config_file(run_dir), bindings, trust)


def stored_config(run_dir: pathlib.Path) -> StoredConfig:
    """The config of a run directory as text; no code of the run is imported.

    Raises:
      UserError: it is not a run directory.
    """
    return read_stored(config_file(run_dir))


def config_file(run_dir: pathlib.Path) -> pathlib.Path:
    """The config of a run directory.

    Raises:
      UserError: it is not a run directory, or cannot be read.
    """
    try:
        with objects.os_errors(run_dir):
            is_folder, has_config = run_dir.is_dir(), (run_dir / CONFIG).is_file()
    except OSError as error:
        raise UserError(
            f"{run_dir} cannot be read: {error.strerror or error}."
        ) from error
    if not is_folder:
        raise UserError(f"{run_dir}: no such directory.")
    if not has_config:
        raise UserError(f"{run_dir} holds no {CONFIG}, so it is not a run directory.")
    return run_dir / CONFIG


def source_of(wanted: InitFrom, trust: bool = False) -> Source:
    """The run from which `experiment.init_from` takes parameters.

    Raises:
      UserError: `init_from.run` is not a run directory, or its config imports code
        without `trust`.
    """
    run_dir = as_path(wanted.run, "init_from.run")
    try:
        experiment = stored_experiment(run_dir, trust)
    except UserError as error:
        raise UserError(f"init_from.run: {error}") from None
    vocab_size = experiment.objective.vocab_size
    saved = run_dir / TOKENIZER
    tokenizer = load_tokenizer(saved) if saved.is_dir() else None
    return Source(wanted, vocab_size, tokenizer, experiment.objective)
