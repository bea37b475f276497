"""Starting, or continuing, a run of an experiment in a directory."""

import os
import pathlib

import jax

from fmjax import run_dir as run_dirs
from fmjax.errors import UserError
from fmjax.evaluation.reconstructions import reconstructions
from fmjax.evaluation.sample import sample
from fmjax.evaluation.unigram import unigram_baseline
from fmjax.experiment import Experiment
from fmjax.training import loop
from fmjax.training.checkpoints import saved_steps


def train(
    experiment: Experiment,
    run_dir: str | os.PathLike,
    *,
    override: bool = False,
    trust: bool = False,
) -> loop.Outcome:
    """Trains `experiment` in `run_dir` to its end, or until it is told to stop.

    Args:
      experiment: from `fmjax.load_experiment`.
      run_dir: a new or empty directory, or one where this experiment was started.
      override: continue a run although it now means something else.
      trust: the stored config may import code.

    Raises:
      UserError: before anything is compiled or overwritten.
      fmjax.training.step_log.Diverged: if the loss is not finite.
    """
    for part in ("data", "optimizer"):
        if getattr(experiment, part) is None:
            raise UserError(
                f"experiment.{part} has no value, so there is nothing to train; "
                "include runs/pretrain.gin or bind it."
            )
    folder = pathlib.Path(run_dir).expanduser().absolute()
    config_text = run_dirs.claim(folder, experiment, override, trust)

    def store() -> None:
        if jax.process_index() == 0:
            run_dirs.write(folder, config_text)
            if (tokenizer := experiment.data.tokenizer()) is not None:
                tokenizer.save(folder / run_dirs.TOKENIZER)

    return loop.train(
        experiment,
        folder,
        config_text,
        evaluations=[
            unigram_baseline(experiment),
            sample(experiment),
            reconstructions(experiment),
        ],
        sources=[]
        if saved_steps(folder)
        else [run_dirs.source_of(wanted, trust) for wanted in experiment.init_from],
        on_checked=store,
        changed_data=override,
    )
