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
from fmjax.errors import UserError, explained_out_of_memory
from fmjax.evaluation.embeddings import measure_embeddings
from fmjax.evaluation.labels import check_labels, evaluate_labels
from fmjax.evaluation.robustness import RobustAccuracy, measure_robustness
from fmjax.evaluation.unigram import baseline
from fmjax.evaluation.written_labels import scores_written
from fmjax.inference.adapters import adapters_config, base_of, check_same_base
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.text_contrast import TextContrast
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import (
    MeshConfig,
    batch_sharding,
    global_batch,
    local_rows,
    on_mesh,
)
from fmjax.sharding.xla_options import xla_options
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.read_model import restore_model
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.checks import check_divisible
from fmjax.training.evaluate import evaluate
from fmjax.training.experiment import Experiment
from fmjax.training.step import make_eval_step

LESS_MEMORY = (
    "What helps: a smaller train.eval_batch_size, or more devices with mesh.data = 1 "
    "and mesh.fsdp = -1, which divide the parameters among them."
)


@explained_out_of_memory(LESS_MEMORY)
def evaluate_run(
    run_dir: str | os.PathLike,
    *,
    step: int | None = None,
    bindings: Sequence[str] = (),
    trust: bool = False,
    adapter: str | os.PathLike | None = None,
) -> dict[str, float]:
    """Loss and metrics of a checkpoint over the whole validation split.

    Args:
      run_dir: the run directory.
      step: step of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" bindings that override the stored config, such as another
        data path. Preprocessing of images that is not bound is that of an imported run.
      trust: whether the stored config may import code.
      adapter: a run directory of adapters of the same base, whose model and objective
        are evaluated at its newest step, on the data of `run_dir`; None for none.

    Returns:
      The result of `fmjax.training.evaluate.evaluate` with "step", for text
      "perplexity" and the unigram baseline, for labels the scores of
      `fmjax.evaluation.label_scores`, for vectors of texts those of
      `fmjax.evaluation.embedding_scores`, and the robust accuracy if
      experiment.evaluations has it.

    Raises:
      UserError: the run has no data, the data has another tokenizer or other classes
        than the run, the adapters have another base or cannot read the data, or the
        devices have too little memory.
    """
    folder = as_path(run_dir)
    experiment = run_dirs.stored_experiment(folder, trust, bindings)
    if experiment.data is None:
        raise UserError(
            f"{folder}: experiment.data = None (an imported run has no data); expected "
            "data to evaluate on. Bind experiment.data=@data() and data.train=…."
        )
    weights = folder
    if adapter is not None:
        weights = as_path(adapter)
        experiment = _with_adapter(experiment, folder, step, weights, trust)
        step = None
    # The stored mesh may be for another machine; by default use all devices here.
    mesh_is_bound = any(binding.startswith("mesh.") for binding in bindings)
    mesh_config = experiment.mesh if mesh_is_bound else MeshConfig()
    mesh, rules = mesh_config.build(), mesh_config.all_rules
    size = experiment.train.eval_batch_size or experiment.train.batch_size
    check_divisible("train.eval_batch_size", size, 1, mesh, rules)
    objective, data = experiment.objective, data_of(experiment, bindings)
    if (tokenizer := data.tokenizer()) is not None:
        check_tokenizer(folder, tokenizer.digest)
    experiment = dataclasses.replace(experiment, data=data)
    check_labels(experiment)
    if adapter is not None:
        objective.check(data.row_shapes(), tokenizer and tokenizer.vocab_size)
    if jax.process_index() == 0:
        data.prepare()
    data.wait_until_prepared()
    peft = experiment.peft
    variables, step = restore_model(weights, objective, mesh, rules, step, peft=peft)
    sharding = batch_sharding(mesh, rules)
    options = xla_options(mesh.devices.flat[0], experiment.train.xla_options)
    with on_mesh(mesh, rules):
        if isinstance(objective, LabelObjective) or scores_written(experiment):
            values, found = evaluate_labels(experiment, variables, mesh, rules)
            values |= found.scores
        else:
            values = evaluate(
                make_eval_step(objective, options),
                variables,
                data.eval_batches(size, local_rows(sharding, size)),
                lambda batch: global_batch(batch, sharding, size),
                objective.unit,
            )
        for how in experiment.evaluations:
            if isinstance(how, RobustAccuracy):
                how.check(experiment)
                values |= measure_robustness(how, experiment, variables, mesh, rules)
        if isinstance(objective, TextContrast):
            values |= measure_embeddings(experiment, variables, mesh, rules)
    if "nll" in values:
        values["perplexity"] = float(np.exp(values["nll"]))
    counts = data.target_counts()
    return {"step": step, **values, **(baseline(*counts) if counts else {})}


def _with_adapter(
    experiment: Experiment,
    folder: pathlib.Path,
    step: int | None,
    adapter: pathlib.Path,
    trust: bool,
) -> Experiment:
    """The experiment of a run with the objective of adapters of the same base."""
    own = adapters_config(adapter, trust)
    base = base_of(folder, step, run_dirs.stored_experiment(folder, trust))
    check_same_base(base, SavedState(adapter))
    return dataclasses.replace(
        experiment, objective=own.objective, peft=own.peft, embedding=own.embedding
    )


def data_of(experiment: Experiment, bindings: Sequence[str]) -> Data | ImageData | None:
    """The data of an experiment, with the preprocessing of an imported run.

    An imported run has a preprocessing but no data. Without this, images that are bound
    to it would silently be normalized with the defaults of @images(). Fields that are
    bound explicitly are not changed.
    """
    data, own = experiment.data, experiment.preprocessing
    if own is None or not isinstance(data, ImageData):
        return data
    bound = {b.partition("=")[0].strip().rsplit("/", 1)[-1] for b in bindings}
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    unbound = {name: x for name, x in fields.items() if f"images.{name}" not in bound}
    return dataclasses.replace(data, **unbound)


def check_tokenizer(folder: pathlib.Path, digest: str) -> None:
    """Checks that data has the tokenizer of a run.

    A tokenizer that was trained again on changed text has other tokens for its ids.

    Args:
      folder: the run directory.
      digest: digest of the data's tokenizer.

    Raises:
      UserError: the tokenizers differ.
    """
    stored = folder / run_dirs.TOKENIZER
    if stored.is_dir() and (own := load_tokenizer(stored).digest) != digest:
        raise UserError(
            f"experiment.data has another tokenizer ({digest}) than the run in "
            f"{stored} ({own}), so its ids are other tokens. Bind the tokenizer file "
            "or the text from which the run's tokenizer was made."
        )
