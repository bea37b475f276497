"""Export: writing a run as a folder that Hugging Face's transformers can load."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import load_tokenizer
from fmjax.errors import UserError, suggest
from fmjax.field_types import gin_name
from fmjax.interop import (
    generation_file,
    labels_file,
    model_card,
    preprocessor_file,
    sentence_files,
    tokenizer_files,
)
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import Architecture, Family, Unlike
from fmjax.interop.model_card import Exported
from fmjax.interop.safetensors_writer import check_dtype
from fmjax.interop.safetensors_writer import write as write_tensors
from fmjax.interop.weights import leaves, tensors
from fmjax.models.contracts import vocab_size_of
from fmjax.run import directory as run_dirs
from fmjax.run.best_step import Step, chosen_step
from fmjax.sharding.mesh import MeshConfig
from fmjax.storage.new_folder import new_folder
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.read_model import find_model
from fmjax.training.experiment import Experiment
from fmjax.training.merged import MergedState
from fmjax.training.state import abstract_variables

MAX_SHARD_BYTES = 5 * 10**9
# Bytes of a model that is read at once: Orbax takes milliseconds for each reading.
_AT_ONCE = 2**28


def export_model(
    run_dir: str | os.PathLike,
    hf_dir: str | os.PathLike,
    *,
    step: Step = None,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    model_type: str | None = None,
    trust: bool = False,
    license: str | None = None,
    languages: Sequence[str] = (),
    merged: bool = False,
) -> list[str]:
    """Writes config.json, weights and tokenizer of a run, as `save_pretrained` does.

    A model card, README.md, says what the run records of the model.

    Args:
      run_dir: a run directory, from `fmjax train` or `fmjax import`.
      hf_dir: the folder to write; it must be new.
      step: as of `fmjax.load`. Averaged parameters are used if the run has them.
      dtype: dtype of the weights: float32, float16 or bfloat16; if None, that of the
        files from which the model was imported, or float32.
      max_shard_bytes: maximum bytes of a file of weights.
      model_type: model_type of config.json, if several fit the model; if None, that of
        the files from which the model was imported, or the first.
      trust: whether the run's config may import Python modules.
      license: of the model, for its card, such as "apache-2.0".
      languages: of the model, for its card, such as "en".
      merged: whether adapters of the run are merged into the weights; a run that has
        some is not exported otherwise.

    Returns:
      Notes for the user: the model's type, and what the folder does not contain.

    Raises:
      UserError: no model_type can represent the model; the message names the field.
        Nothing is written then.
    """
    source = as_path(run_dir)
    experiment = run_dirs.stored_experiment(source, trust)
    step = chosen_step(source, step, trust)
    objective, peft = experiment.objective, experiment.peft
    if not merged and peft is not None and peft.methods:
        raise UserError(
            f"{source} has adapters (peft.methods). Expected --merged, for a model "
            "with the adapters in its weights, or --adapter, for files of peft."
        )
    state = None
    if merged:
        state = MergedState(source, experiment, step)
        objective = state.plan.objective
    imported = experiment.imported
    dtype = exported_dtype(experiment, dtype)
    check_dtype(dtype)
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes = {max_shard_bytes}: expected at least 1.")
    family, name, architecture, config = describe(
        objective.model, model_type, imported.model_type if imported else None
    )
    config |= family.write_objective(objective)
    objective = objective.without_own_params()
    objective = dataclasses.replace(objective, model=family.kept(objective.model))
    folder = source / run_dirs.TOKENIZER
    tokenizer = load_tokenizer(folder) if folder.is_dir() else None
    axes, shapes = (tree["params"] for tree in abstract_variables(objective))
    known = leaves(axes, shapes, vocab_size_of(objective.model))
    notes = [f"model_type {family.model_type}, {name}, weights in {dtype}"]
    notes += [f"without {objective.model.gin_name}.{name}" for name in family.without]
    with new_folder(hf_dir) as target:
        # On the host, since the model may not fit a single accelerator.
        mesh = MeshConfig().build(jax.local_devices(backend="cpu")[:1])
        rules = MeshConfig().all_rules
        if state is not None:
            saved, stored = state.saved, state.plan.shapes
        else:
            found = find_model(source, objective, mesh, rules, step, peft=peft)
            saved, stored, _ = found

        def read(names: Iterable[str]) -> dict[str, np.ndarray]:
            if state is not None:
                arrays = state.read(names)
            else:
                arrays = saved.read_params({name: stored[name] for name in names})
            return {name: np.asarray(array) for name, array in arrays.items()}

        from_memory = None
        if sum(each.size * each.dtype.itemsize for each in stored.values()) <= _AT_ONCE:
            kept = read(stored)

            def from_memory(names: Iterable[str]) -> dict[str, np.ndarray]:
                return {name: kept[name] for name in names}

        how = from_memory or read
        every = [*tensors(how, stored, objective.model, family, architecture, known)]
        write_tensors(target, every, dtype, max_shard_bytes)
        notes.append(tokenizer_files.write(target, tokenizer))
        if experiment.image_preprocessing is not None:
            preprocessor_file.write(
                target, experiment.image_preprocessing, config.get("vision_config")
            )
            notes.append(f"images' preprocessing in {preprocessor_file.FILE}")
        embedding = experiment.own_embedding
        if embedding is not None and isinstance(tokenizer, HuggingFaceTokenizer):
            model = objective.model
            sizes = (model.transformer.embed_dim, model.max_length)
            notes.append(sentence_files.write(target, embedding, *sizes))
        ids = generation_file.write_back(source, target)
        about = {"model_type": family.model_type, "architectures": [name]}
        about |= {"dtype": dtype}
        about |= tokenizer_files.ids(tokenizer) if ids is None else ids
        config |= labels_file.options(experiment.labels, config)
        config |= labels_file.problem(experiment)
        text = json.dumps(about | config, indent=2, sort_keys=True)
        (target / "config.json").write_text(text + "\n", encoding="utf-8")
        exported = Exported(
            family.model_type,
            name,
            dtype,
            sum(math.prod(tensor.shape) for tensor in every),
            saved.step,
            saved.averaged,
            any(target.glob("tokenizer*")),
        )
        model_card.write(target, source, experiment, exported, license, languages)
        notes.append(f"model card in {model_card.FILE}")
    return notes


def exported_dtype(experiment: Experiment, dtype: str | None) -> str:
    """The dtype of exported weights; None for that of the imported folder, if any."""
    imported = experiment.imported
    return dtype or (imported.dtype if imported else "float32")


def describe(
    model: nn.Module, model_type: str | None = None, preferred: str | None = None
) -> tuple[Family, str, Architecture, dict[str, Any]]:
    """The Hugging Face family and architecture of a model.

    Args:
      model: the model.
      model_type: the model_type of config.json; the first that fits if None.
      preferred: the model_type that comes first of all.

    Returns:
      The family, the architecture's name, the architecture, and options of config.json.

    Raises:
      UserError: no family can represent the model; the message names a field.
    """
    families = [f for f in FAMILIES if type(model) is f.model]
    families.sort(key=lambda family: family.model_type != preferred)
    if not families:
        raise UserError(
            f"@{gin_name(model) or type(model).__name__}() cannot be "
            "exported: transformers has no such model."
        )
    if model_type is not None:
        known = list(dict.fromkeys(f.model_type for f in families))
        families = [f for f in families if f.model_type == model_type]
        if not families:
            raise UserError(
                f"--model_type {model_type!r} cannot represent @{model.gin_name}(); "
                f"expected one of {', '.join(known)}.{suggest(model_type, known)}"
            )
    refused = []
    for family in families:
        try:
            return family, *family.write(family.kept(model))
        except Unlike as error:
            refused.append((error.distance, family, error))
    _, family, error = min(refused, key=lambda each: each[0])
    raise UserError(
        f"transformers has no such model. The nearest model_type, "
        f"{family.model_type}, cannot represent: {error}"
    )
