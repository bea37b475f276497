"""Adapters of loaded runs: merged, switched, taken away."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import linen as nn
from flax import traverse_util

from fmjax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from fmjax.errors import UserError
from fmjax.optim.peft.peft import PeftPlan
from fmjax.run import directory as run_dir
from fmjax.sharding.rules import named_shardings, param_specs
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.read_model import coders, find_model, read_params
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.experiment import Experiment
from fmjax.training.merged import MergePlan
from fmjax.training.state import abstract_variables

Where = tuple[jax.sharding.Mesh, Any]


class Loaded(Protocol):
    """What is read of a `fmjax.inference.run.Run`."""

    config: Experiment
    model: nn.Module
    params: dict
    tokenizer: Tokenizer | None
    step: int
    extra: Mapping[str, Any]
    directory: pathlib.Path | None


def merged(run: Loaded, where: Where, dtype: str | None = None) -> dict[str, Any]:
    """The fields of a run whose adapters are merged into the weights.

    Args:
      run: a run of adapters.
      where: its mesh and rules.
      dtype: of the weights; None for that which each had.

    Raises:
      UserError: adapters cannot be merged.
    """
    plan = MergePlan.of(run.config.objective, run.config.peft)
    axes, shapes = abstract_variables(plan.objective)
    specs = param_specs(axes["params"], shapes["params"], *where)
    config = dataclasses.replace(
        run.config, objective=plan.objective, peft=None, init_from=(), freeze=()
    )
    return {
        "config": config,
        "model": plan.objective.model,
        "params": jax.device_put(
            plan.merge(run.params, dtype), named_shardings(specs, where[0])
        ),
    }


def with_adapter(
    run: Loaded,
    where: Where,
    directory: str | os.PathLike,
    step: int | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """The fields of a run with the adapters of another run of the same base.

    Args:
      run: of the base, or of other adapters.
      where: its mesh and rules.
      directory: of the run of adapters.
      step: of its checkpoint; None for the newest.
      trust: whether its config may import Python modules.

    Raises:
      UserError: it has no adapters, or another base.
    """
    folder = as_path(directory)
    config = adapters_config(folder, trust)
    base = _base_of_loaded(run)
    found = _fields(where, config, folder, step)
    check_same_base(base, found["saved"])
    return _read(run, where, found)


def with_loaded_adapter(run: Loaded, other: Loaded) -> dict[str, Any]:
    """The fields of a run with the adapters of a loaded run; reads no parameters.

    Args:
      run: of the base, or of other adapters.
      other: a loaded run of adapters, on the same mesh.

    Raises:
      UserError: it has no adapters, or another base.
    """
    if other.config.peft is None:
        raise UserError(
            "the other run has no adapters (experiment.peft = None); expected some."
        )
    flat = traverse_util.flatten_dict(other.params, sep="/")
    shared = {
        name: array
        for own in _shared(run, other.config).values()
        for name, array in own.items()
    }
    # Of runs that already share them, nothing on disk is looked at.
    if not shared or any(flat[name] is not array for name, array in shared.items()):
        check_same_base(_base_of_loaded(run), SavedState(other.directory, other.step))
    return {
        "config": other.config,
        "model": other.model,
        "params": traverse_util.unflatten_dict(flat | shared, sep="/"),
        "tokenizer": other.tokenizer,
        "step": other.step,
        "extra": other.extra,
        "directory": other.directory,
    }


def read_tokenizer(directory: pathlib.Path) -> Tokenizer | None:
    """The tokenizer of a run directory; None if it has none."""
    folder = directory / run_dir.TOKENIZER
    return load_tokenizer(folder) if folder.is_dir() else None


def without_adapters(run: Loaded, where: Where, trust: bool = False) -> dict[str, Any]:
    """The fields of the run that the adapters of a run were trained on.

    Args:
      run: a run of adapters.
      where: its mesh and rules.
      trust: whether the base's config may import Python modules.

    Raises:
      UserError: the base is no longer what it was.
    """
    base = _base_of_loaded(run)
    config = run_dir.stored_experiment(base.run_dir, trust)
    found = _fields(where, config, base.run_dir, base.step)
    return _read(run, where, found)


def adapters_config(folder: pathlib.Path, trust: bool = False) -> Experiment:
    """The config of a run directory of adapters; raises a UserError for others."""
    config = run_dir.stored_experiment(folder, trust)
    if config.peft is None:
        raise UserError(
            f"{folder} is no run of adapters (experiment.peft = None); expected one."
        )
    return config


def base_of(
    directory: pathlib.Path, step: int | None, config: Experiment
) -> SavedState:
    """The checkpoint of the base of a run; its own without adapters.

    Args:
      directory: of the run.
      step: of its checkpoint; None for the newest.
      config: of the run.

    Raises:
      UserError: it has parameters of several runs.
    """
    saved = SavedState(directory, step)
    if config.peft is None:
        return saved
    (base,) = _bases(saved)
    return base


def check_same_base(base: SavedState, adapters: SavedState) -> None:
    """Raises a UserError for adapters of another base than this checkpoint."""
    (other,) = _bases(adapters)
    if base.digest_of(base.param_shapes) != other.digest_of(other.param_shapes):
        raise UserError(
            f"{adapters.run_dir} has adapters of {other.run_dir} at step {other.step}, "
            f"not of {base.run_dir} at step {base.step}. Expected adapters of the same "
            "base."
        )


def _base_of_loaded(run: Loaded) -> SavedState:
    if run.directory is None:
        raise UserError("this run has no directory, and so no base with adapters.")
    return base_of(run.directory, run.step, run.config)


def _bases(saved: SavedState) -> list[SavedState]:
    if len(saved.bases) != 1:
        raise UserError(
            f"{saved.run_dir} has parameters of {len(saved.bases)} other runs; "
            "expected one base, whose adapters can be switched."
        )
    return saved.bases


def _fields(
    where: Where, config: Experiment, folder: Any, step: int | None
) -> dict[str, Any]:
    found = find_model(folder, config.objective, *where, step, peft=config.peft)
    names = ("saved", "wanted", "extra")
    return {"config": config, "folder": folder} | dict(zip(names, found))


def _read(run: Loaded, where: Where, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run, of which frozen parameters are those in memory."""
    config, saved, wanted = found["config"], found["saved"], found["wanted"]
    shared = _shared(run, config)
    lacking = {path: struct for path, struct in wanted.items() if path not in shared}
    code = coders(config.objective, config.peft, *where)
    read = read_params(saved, lacking, None, code) if lacking else {}
    params = {name: array for own in shared.values() for name, array in own.items()}
    return {
        "config": config,
        "model": config.objective.model,
        "params": traverse_util.unflatten_dict(params | read, sep="/"),
        "tokenizer": read_tokenizer(found["folder"]),
        "step": saved.step,
        "extra": saved.read_extra(found["extra"]),
        "directory": found["folder"],
    }


def _shared(run: Loaded, config: Experiment) -> dict[str, dict[str, jax.Array]]:
    """Path of a base's parameter → its arrays in memory, where both runs have these."""
    before, after = _plan(run.config), _plan(config)
    flat = traverse_util.flatten_dict(run.params, sep="/")
    frozen = [{*plan.frozen} for plan in (before, after) if plan is not None]
    shared = {}
    for path in set.intersection(*frozen):
        kept = [
            (path,) if plan is None else plan.kept_as(path) for plan in (before, after)
        ]
        if kept[0] == kept[1]:
            shared[path] = {name: flat[name] for name in kept[0]}
    return shared


def _plan(config: Experiment) -> PeftPlan | None:
    if config.peft is None:
        return None
    axes, shapes = abstract_variables(config.objective)
    return config.peft.plan(axes["params"], shapes["params"])
