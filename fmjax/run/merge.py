"""Merging runs of adapters: a new run directory of whole weights."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from fmjax.config.render import render
from fmjax.errors import UserError
from fmjax.run import directory as run_dirs
from fmjax.run.fork import copy_files
from fmjax.storage.new_folder import new_folder
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint import checkpoints
from fmjax.training.checkpoint.bucket_steps import COMMITTED
from fmjax.training.checkpoint.saved_state import FOLDER
from fmjax.training.experiment import Experiment
from fmjax.training.merged import MergedState

_DTYPES = ("float32", "bfloat16", "float16")


def merge_runs(
    runs: Sequence[str | os.PathLike],
    new_dir: str | os.PathLike,
    *,
    weights: Sequence[float] | None = None,
    step: int | None = None,
    dtype: str = "float32",
    trust: bool = False,
) -> list[str]:
    """Writes a run directory of whole weights that compute what adapters do.

    Several runs of adapters of one base are averaged: each weight is that of the base
    and, of each run, its change times the run's weight. Weights of a base that is kept
    in fewer bits (peft.coding) are those that the bits stand for.

    Args:
      runs: run directories of adapters, with the same base.
      new_dir: a new or empty directory, or an address in a bucket.
      weights: of the runs; None for 1, of a single run.
      step: of the checkpoint of a single run; None for the newest.
      dtype: of the parameters in the new run directory. Narrower ones than float32
        round what adapters have changed.
      trust: whether the runs' configs may import Python modules.

    Returns:
      Lines for the user.

    Raises:
      UserError: a run has no adapters, or such that cannot be merged; runs are of
        different bases or models; or `new_dir` is not empty. Nothing is written then.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype = {dtype!r}: expected one of {', '.join(_DTYPES)}.")
    weights = _weights(runs, weights)
    if step is not None and len(runs) > 1:
        raise UserError(f"--step {step}: expected a single run, found {len(runs)}.")
    folders = [as_path(run, "the run directory") for run in runs]
    experiments = [run_dirs.stored_experiment(folder, trust) for folder in folders]
    states = [
        MergedState(folder, experiment, step)
        for folder, experiment in zip(folders, experiments)
    ]
    _check_alike(folders, states)
    first = states[0]
    with new_folder(new_dir) as draft:
        run_dirs.write(draft, render(_without_adapters(experiments[0], first)))
        for folder in (folders[0], *(base.run_dir for base in first.saved.bases)):
            lacking = [name for name in run_dirs.KEPT if not (draft / name).exists()]
            copy_files(folder, draft, lacking)
        host = jax.local_devices(backend="cpu")[0]
        params = {}
        for group in first.groups():
            for path, array in _merged(group, states, weights, dtype).items():
                params[path] = jax.device_put(array, host)
        nested = traverse_util.unflatten_dict(params, sep="/")
        checkpoints.save_model(draft, nested, first.extra)
        if is_bucket(as_path(new_dir)):  # A checkpoint counts there once it is marked.
            (draft / FOLDER / "0" / COMMITTED).write_text("merged")
    count = sum(math.prod(leaf.shape) for leaf in first.plan.shapes.values())
    notes = [f"{count:,} parameters in {dtype}"]
    if first.plan.has_own_head:
        notes.append(
            "the head, which was tied to the table, has weights of its own: the "
            "adapter changes the table alone"
        )
    return notes


def _weights(
    runs: Sequence[str | os.PathLike], weights: Sequence[float] | None
) -> list[float]:
    if weights is None and len(runs) == 1:
        return [1.0]
    if weights is None or len(weights) != len(runs):
        raise UserError(
            f"--weights has {len(weights or ())} numbers; expected one for each of "
            f"{len(runs)} runs."
        )
    return list(weights)


def _check_alike(folders: Sequence[pathlib.Path], states: Sequence[MergedState]):
    """Raises a UserError for runs of different models or bases."""
    first = states[0]
    for folder, state in zip(folders[1:], states[1:]):
        same = state.plan.objective.model == first.plan.objective.model
        if not same or _base_digest(state) != _base_digest(first) or state.extra:
            raise UserError(
                f"{folder} has another model or another base than {folders[0]}; "
                "expected runs of adapters of one base."
            )


def _base_digest(state: MergedState) -> list[str]:
    return [base.digest_of(base.param_shapes) for base in state.saved.bases]


def _merged(
    paths: Sequence[str],
    states: Sequence[MergedState],
    weights: Sequence[float],
    dtype: str,
) -> dict[str, Array]:
    found = [state.read(paths) for state in states]
    if weights == [1.0]:
        return {path: array.astype(dtype) for path, array in found[0].items()}
    whole = {}
    for path in paths:
        base = states[0].base(path).astype(jnp.float32)
        changes = (
            weight * (arrays[path].astype(jnp.float32) - base)
            for arrays, weight in zip(found, weights)
        )
        whole[path] = sum(changes, base).astype(dtype)
    return whole


def _without_adapters(experiment: Experiment, state: MergedState) -> Experiment:
    return dataclasses.replace(
        experiment,
        objective=state.plan.objective,
        init_from=(),
        freeze=(),
        peft=None,
    )
