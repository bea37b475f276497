"""Evaluating a run directory on its validation split."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from fmjax.data.images.image_data import ImageData
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.tokenizers import load_tokenizer
from fmjax.errors import UserError
from fmjax.evaluation.unigram import baseline
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import (
    MeshConfig,
    batch_sharding,
    global_batch,
    local_rows,
    on_mesh,
)
from fmjax.training.checkpoint.saved_state import restore_model
from fmjax.training.checks import check_divisible
from fmjax.training.evaluate import evaluate
from fmjax.training.experiment import Experiment
from fmjax.training.step import make_eval_step


def evaluate_run(
    run_dir: str | os.PathLike,
    *,
    step: int | None = None,
    bindings: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, float]:
    """Loss and metrics of a checkpoint over the whole validation split.

    Args:
      run_dir: the run directory.
      step: of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" over the stored config, such as another data path; what
        they leave open of images' preprocessing is an imported run's own.
      trust: the stored config may import code.

    Returns:
      As `fmjax.training.evaluate.evaluate`, with "step", and for text "perplexity" and
      the unigram baseline.

    Raises:
      UserError: for a run without data, or data whose tokenizer is not the run's.
    """
    folder = pathlib.Path(run_dir).expanduser().absolute()
    experiment = run_dirs.stored_experiment(folder, trust, bindings)
    if experiment.data is None:
        raise UserError(
            f"{folder} has no data to evaluate on (it was imported); bind "
            "experiment.data=@data() and data.train=…."
        )
    # The run's own mesh may be of another machine; on this one, take all devices.
    meant = any(binding.startswith("mesh.") for binding in bindings)
    mesh_config = experiment.mesh if meant else MeshConfig()
    mesh, rules = mesh_config.build(), mesh_config.all_rules
    size = experiment.train.eval_batch_size or experiment.train.batch_size
    check_divisible("train.eval_batch_size", size, 1, mesh, rules)
    objective, data = experiment.objective, data_of(experiment, bindings)
    if (tokenizer := data.tokenizer()) is not None:
        check_tokenizer(folder, tokenizer.digest)
    if jax.process_index() == 0:
        data.prepare()
    data.wait_until_prepared()
    variables, step = restore_model(folder, objective, mesh, rules, step)
    sharding = batch_sharding(mesh, rules)
    batches = data.eval_batches(size, local_rows(sharding, size))
    with on_mesh(mesh, rules):
        values = evaluate(
            make_eval_step(objective),
            variables,
            batches,
            lambda batch: global_batch(batch, sharding, size),
            objective.unit,
        )
    if "nll" in values:
        values["perplexity"] = float(np.exp(values["nll"]))
    counts = data.target_counts()
    return {"step": step, **values, **(baseline(*counts) if counts else {})}


def data_of(experiment: Experiment, bindings: Sequence[str]) -> Data | ImageData | None:
    """An experiment's data; images by its own preprocessing unless bound otherwise.

    An imported run has a preprocessing and no data: images that are bound to it would
    be normalized by the defaults of @images(), and nothing would tell.
    """
    data, own = experiment.data, experiment.preprocessing
    if own is None or not isinstance(data, ImageData):
        return data
    bound = {b.partition("=")[0].strip().rsplit("/", 1)[-1] for b in bindings}
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    free = {name: x for name, x in fields.items() if f"images.{name}" not in bound}
    return dataclasses.replace(data, **free)


def check_tokenizer(folder: pathlib.Path, digest: str) -> None:
    """Raises a UserError unless the digest is that of the tokenizer in a run directory.

    A vocabulary may be trained anew, on changed text: its ids then mean other tokens.
    """
    stored = folder / run_dirs.TOKENIZER
    if stored.is_dir() and (own := load_tokenizer(stored).digest) != digest:
        raise UserError(
            f"experiment.data has another tokenizer ({digest}) than the run, in "
            f"{stored} ({own}): its ids mean other tokens. Bind the files or the text "
            "that the run's was made from."
        )
