"""Loading a run directory: `fmjax.load`."""

import dataclasses
import os

import jax
from flax import traverse_util

from fmjax.errors import UserError, explained_out_of_memory, suggest
from fmjax.inference.adapters import read_tokenizer
from fmjax.inference.run import LESS_MEMORY, Run
from fmjax.run import directory as run_dir
from fmjax.run.best_step import Step, chosen_step
from fmjax.sharding.mesh import MeshConfig
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.read_model import coders, find_model, read_params

# Dtypes of parameters.
_DTYPES = ("float32", "bfloat16", "float16")


@explained_out_of_memory(LESS_MEMORY)
def load(
    directory: str | os.PathLike,
    step: Step = None,
    mesh: MeshConfig | None = None,
    trust: bool = False,
    dtype: str | None = None,
) -> Run:
    """Loads a run directory.

    Args:
      directory: a run directory, from `fmjax train` or `fmjax import`.
      step: step of the checkpoint; the newest if None; "best" for the saved step of
        the best train.best_metric. Averaged parameters are used if the run has them.
      mesh: the mesh for the parameters, such as MeshConfig(data=1, fsdp=-1); only the
        first device if None.
      trust: whether the run's config may import Python modules.
      dtype: dtype of the parameters: float32, bfloat16 or float16; as they were saved
        if None. The dtype of the computation is transformer.dtype.

    Returns:
      The run; for example, `run(tokens=...)["logits"]`.

    Raises:
      UserError: the directory is not a run directory or has no such checkpoint, the
        dtype is not supported, or there is too little memory.
    """
    if dtype not in (None, *_DTYPES):
        raise UserError(
            f"dtype = {dtype!r}: expected one of {', '.join(_DTYPES)}."
            f"{suggest(str(dtype), _DTYPES)}"
        )
    directory = as_path(directory)
    config = run_dir.stored_experiment(directory, trust)
    step = chosen_step(directory, step, trust)
    devices = jax.local_devices()[:1] if mesh is None else jax.devices()
    mesh = mesh or MeshConfig()
    mesh = dataclasses.replace(mesh, rules=mesh.rules or config.mesh.rules)
    where = mesh.build(devices), mesh.all_rules
    found = find_model(directory, config.objective, *where, step, peft=config.peft)
    saved, wanted, extra = found
    code = coders(config.objective, config.peft, *where)
    params = read_params(saved, wanted, dtype, code)
    return Run(
        config=config,
        model=config.objective.model,
        params=traverse_util.unflatten_dict(params, sep="/"),
        tokenizer=read_tokenizer(directory),
        step=saved.step,
        extra=saved.read_extra(extra),
        rules=mesh.all_rules,
        directory=directory,
    )
