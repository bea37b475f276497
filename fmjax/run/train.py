"""Starting, or continuing, a run of an experiment in a directory."""

import os
import pathlib
from collections.abc import Callable

import jax

from fmjax.errors import UserError, refuse_scheme
from fmjax.run import directory as run_dirs
from fmjax.run import lock as run_lock
from fmjax.run.lock import RunLock
from fmjax.training import loop
from fmjax.training.checkpoint.saved_state import saved_steps
from fmjax.training.experiment import Experiment
from fmjax.training.faults.watchdog import warn


def train(
    experiment: Experiment,
    run_dir: str | os.PathLike,
    *,
    override: bool = False,
    trust: bool = False,
    on_hang: Callable[[str], None] = warn,
) -> loop.Outcome:
    """Trains `experiment` in `run_dir` to its end, or until it is told to stop.

    Args:
      experiment: from `fmjax.load_experiment`.
      run_dir: a new or empty directory, or one where this experiment was started.
      override: continue a run although it now means something else.
      trust: the stored config may import code.
      on_hang: called, in another thread, with what seems to hang; warns if not given.

    Raises:
      UserError: before anything is compiled or overwritten.
      fmjax.training.faults.bad_step_log.Diverged: if the loss is not finite; see
        there, and `fmjax.training.loop.train`, for what else.
    """
    for part in ("data", "optimizer"):
        if getattr(experiment, part) is None:
            raise UserError(
                f"experiment.{part} has no value, so there is nothing to train; "
                "include runs/pretrain.gin or bind it."
            )
    refuse_scheme(run_dir, "--run_dir")
    folder = pathlib.Path(run_dir).expanduser().absolute()
    run_dirs.check_writable(folder)
    config_text = run_dirs.claim(folder, experiment, override, trust)

    first, lock = jax.process_index() == 0, RunLock(folder)
    if first:
        run_lock.refuse_if_taken(folder, at_once=True)

    def store() -> None:
        if not first:
            return
        try:
            lock.take()
            run_dirs.write(folder, config_text)
            if (tokenizer := experiment.data.tokenizer()) is not None:
                tokenizer.save(folder / run_dirs.TOKENIZER)
        except OSError as error:
            raise run_dirs.cannot_write(folder, error.filename, error) from error

    try:
        return loop.train(
            experiment,
            folder,
            config_text,
            sources=[]
            if saved_steps(folder)
            else [run_dirs.source_of(wanted, trust) for wanted in experiment.init_from],
            on_checked=store,
            on_hang=on_hang,
            changed_data=override,
        )
    finally:
        lock.release()
