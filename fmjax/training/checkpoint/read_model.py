"""Reading the model of a run, onto devices and in the dtypes that are wanted."""

import functools
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
from flax import traverse_util

from fmjax.errors import UserError
from fmjax.objectives.objective import Objective
from fmjax.optim.peft.peft import Peft, PeftPlan
from fmjax.sharding.rules import LogicalRules, named_shardings, param_specs
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.state import abstract_variables

# A weight → the arrays that are kept of it, by path in the parameters.
Coder = Callable[[jax.Array], dict[str, jax.Array]]
# Bytes of parameters that are read at once before they are cast or coded.
_READ_BYTES = 256 << 20


def restore_model(
    run_dir: pathlib.Path,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
    step: int | None = None,
    ema: bool = True,
    peft: Peft | None = None,
) -> tuple[dict, int]:
    """Reads the variables of a checkpoint, each leaf directly into its sharding.

    Args:
      run_dir: the run directory.
      objective: the run's, whose model defines names and shapes.
      mesh: where to put them.
      rules: logical to mesh axes.
      step: of the checkpoint; None for the newest.
      ema: read averaged parameters where the run kept them.
      peft: of the run.

    Returns:
      ({"params": …, other collections}, the step).

    Raises:
      UserError: if there is no such checkpoint, or it does not fit the model.
    """
    found = find_model(run_dir, objective, mesh, rules, step, ema, peft)
    saved, wanted, extra = found
    params = read_params(saved, wanted, coders=coders(objective, peft, mesh, rules))
    params = traverse_util.unflatten_dict(params, sep="/")
    return {"params": params} | saved.read_extra(extra), saved.step


def find_model(
    run_dir: pathlib.Path,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
    step: int | None = None,
    ema: bool = True,
    peft: Peft | None = None,
) -> tuple[SavedState, dict[str, jax.ShapeDtypeStruct], dict]:
    """Finds a checkpoint, and what to read from it; arguments as for `restore_model`.

    Returns:
      The checkpoint; shapes and shardings of the parameters by path, for `read_params`,
      those of coded weights before they are coded, see `coders`; and those of the
      other collections, for `read_extra`.

    Raises:
      UserError: there is no such checkpoint, or it does not fit the model.
    """
    saved = SavedState(run_dir, step, ema)
    axes, shapes = abstract_variables(objective, peft)
    if peft is not None:
        plan = _planned(objective, peft)
        of_others = {path for each in saved.references for path in each.arrays}
        for kind, tree in ((plan.base_axes, axes), (plan.base_shapes, shapes)):
            flat = traverse_util.flatten_dict(tree["params"], sep="/")
            for path in plan.coded.keys() & of_others:
                for part in plan.kept_as(path):
                    del flat[part]
                flat[path] = kind[path]
            tree["params"] = traverse_util.unflatten_dict(flat, sep="/")
    places = named_shardings(param_specs(axes, shapes, mesh, rules), mesh)
    shapes = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
        shapes,
        places,
    )
    params = shapes.pop("params")
    _check_fits({"params": params, "extra": shapes}, saved)
    return saved, traverse_util.flatten_dict(params, sep="/"), shapes


def coders(
    objective: Objective,
    peft: Peft | None,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
) -> dict[str, Coder]:
    """Path of a weight that is coded in training → the function that codes it.

    Args:
      objective: of the run.
      peft: of the run.
      mesh: where the codes are to be.
      rules: logical to mesh axes.
    """
    if peft is None or peft.coding is None:
        return {}
    plan = _planned(objective, peft)
    places = named_shardings(param_specs(plan.axes, plan.shapes, mesh, rules), mesh)
    flat = traverse_util.flatten_dict(places, sep="/")
    return {
        path: jax.jit(
            functools.partial(plan.encode, path),
            out_shardings={part: flat[part] for part in parts},
        )
        for path, parts in plan.parts.items()
    }


def read_params(
    saved: SavedState,
    wanted: dict,
    dtype: str | None = None,
    coders: Mapping[str, Coder] = types.MappingProxyType({}),
) -> dict[str, jax.Array]:
    """Reads parameters by path, each array onto its devices.

    With a dtype, they are read in groups and cast on their devices, so that only one
    group at a time is held in the saved dtype. So are those that are coded, from the
    saved dtype.

    Args:
      saved: where they are.
      wanted: shapes by path.
      dtype: of the parameters; None for that in which they were saved.
      coders: of parameters that are kept as codes, by path.
    """
    if dtype is None and not coders:
        return saved.read_params(wanted)
    params = {}
    for group in _groups(wanted):
        for path, array in saved.read_params(group).items():
            if path in coders:
                params |= jax.block_until_ready(coders[path](array))
            elif dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
                params[path] = array
            else:
                params[path] = jax.block_until_ready(array.astype(jnp.dtype(dtype)))
    return params


def _groups(shapes: dict) -> Iterator[dict]:
    """Yields arrays in groups of up to `_READ_BYTES`; a larger array alone."""
    group: dict = {}
    size = 0
    for path, shape in shapes.items():
        more = shape.size * shape.dtype.itemsize
        if group and size + more > _READ_BYTES:
            yield group
            group, size = {}, 0
        group[path] = shape
        size += more
    yield group


def _planned(objective: Objective, peft: Peft) -> PeftPlan:
    axes, shapes = abstract_variables(objective)
    return peft.plan(axes["params"], shapes["params"])


def _check_fits(wanted: dict, saved: SavedState) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape, _ = saved.arrays.get(name, ("nothing", None))
        if shape != leaf.shape:
            raise UserError(
                f"{saved.folder}: {name} should be {leaf.shape} by config.gin, found "
                f"{shape}."
            )
