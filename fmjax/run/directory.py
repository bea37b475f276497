"""A run directory: whose it is, and the experiment it was started with."""

import os
import pathlib
import tempfile
from collections.abc import Sequence

from fmjax.config.load import StoredConfig, load_stored, read_stored
from fmjax.config.render import differences, render
from fmjax.data.tokenizers.tokenizers import load_tokenizer
from fmjax.errors import UserError
from fmjax.run import lock as run_lock
from fmjax.training.experiment import Experiment
from fmjax.training.init_from import InitFrom, Source

CONFIG = "config.gin"
TOKENIZER = "tokenizer"


def claim(
    run_dir: pathlib.Path, experiment: Experiment, override: bool, trust: bool = False
) -> str:
    """Makes the directory this experiment's; returns the config as stored there.

    Raises:
      UserError: if it holds a run that means something else, or things that are no run.
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
                f"{run_dir} holds a run that means something else:\n{table}\n"
                f"{_of_another_length(before, experiment)}"
                "Take another --run_dir, or add --override to continue it changed."
            )
    elif not stored.exists() and run_dir.is_dir() and _others(run_dir):
        raise UserError(
            f"{run_dir} is not empty and holds no {CONFIG}: not a run directory. "
            "Take another --run_dir."
        )
    return render(experiment)


def _of_another_length(before: Experiment, now: Experiment) -> str:
    """What another train.steps does to a schedule that ends there; "" if none does."""
    old, new = before.train.steps, now.train.steps
    if old == new or before.optimizer is None:
        return ""
    schedule = before.optimizer.schedule
    if not schedule.reads_train_steps:
        return ""
    step = min(old, new)
    rates = (
        float(each.optimizer.learning_rate(step, each.train.steps))
        for each in (before, now)
    )
    was, becomes = (f"{rate:.3g}" for rate in rates)
    name = schedule.gin_name
    return (
        f"@{name}() is drawn over all of train.steps: with {new:,} of them the "
        f"learning rate of step {step:,} is {becomes}, with {old:,} it is {was}. "
        "--override goes on from the last checkpoint at the new rates. A run that is "
        "to be extended later takes a schedule that does not read train.steps, such as "
        "@constant().\n"
    )


def check_writable(run_dir: pathlib.Path) -> None:
    """Raises a UserError unless the directory can be made, or written where it exists.

    A folder is made where it would be, and taken away again.
    """
    nearest = run_dir
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    try:
        # An own file of the run by its name: another process may be listing them.
        made = tempfile.mkdtemp(prefix=f".{run_lock.FILE}.", dir=nearest)
        os.rmdir(made)
    except OSError as error:
        raise cannot_write(run_dir, nearest, error) from None


def cannot_write(run_dir: pathlib.Path, place: str, error: OSError) -> UserError:
    """The error for a run directory where the file system refuses a place."""
    return UserError(
        f"--run_dir {run_dir} cannot be written ({place}: {error.strerror}); expected "
        "a directory that can be made or written. Take another --run_dir."
    )


def _others(run_dir: pathlib.Path) -> bool:
    # Another process of the same run may be writing these at this moment.
    own = (f"{CONFIG}.tmp", run_lock.FILE, f".{run_lock.FILE}")
    return any(not path.name.startswith(own) for path in run_dir.iterdir())


def write(run_dir: pathlib.Path, config_text: str) -> None:
    """Stores the config, replacing an older one in one step."""
    run_dir.mkdir(parents=True, exist_ok=True)
    beside = run_dir / f"{CONFIG}.tmp"
    beside.write_text(config_text, encoding="utf-8")
    os.replace(beside, run_dir / CONFIG)


def stored_experiment(
    run_dir: pathlib.Path, trust: bool = False, bindings: Sequence[str] = ()
) -> Experiment:
    """The experiment that a run directory was started with, with `bindings` over it.

    Raises:
      UserError: if it is no run directory, or its config imports code without `trust`.
    """
    return load_stored(_config_of(run_dir), bindings, trust)


def stored_config(run_dir: pathlib.Path) -> StoredConfig:
    """What a run directory's config says, as text; no code of the run is needed.

    Raises:
      UserError: if it is no run directory.
    """
    return read_stored(_config_of(run_dir))


def _config_of(run_dir: pathlib.Path) -> pathlib.Path:
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such directory.")
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir}: no {CONFIG} in it, so not a run directory.")
    return run_dir / CONFIG


def source_of(wanted: InitFrom, trust: bool = False) -> Source:
    """The run that parameters are wanted from, as its directory tells.

    Raises:
      UserError: if it is no run directory, or its config imports code without `trust`.
    """
    run_dir = pathlib.Path(wanted.run)
    try:
        experiment = stored_experiment(run_dir, trust)
    except UserError as error:
        raise UserError(f"init_from.run: {error}") from None
    vocab_size = experiment.objective.vocab_size
    saved = run_dir / TOKENIZER
    tokenizer = load_tokenizer(saved) if saved.is_dir() else None
    return Source(wanted, vocab_size, tokenizer, experiment.objective)
