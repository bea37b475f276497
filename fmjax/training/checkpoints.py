"""Checkpoints of a run: checkpoints/STEP/{state,data,meta}, written by Orbax.

A step's folder appears whole or not at all: Orbax writes beside it and renames.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from fmjax.errors import UserError
from fmjax.objectives.terms import Objective
from fmjax.sharding.rules import LogicalRules, named_shardings, param_specs
from fmjax.training.state import State, abstract_variables

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run_dir: the run directory.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints at multiples of this step are kept for ever.
      keep_best: checkpoints of the lowest validation loss kept besides.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_every: int | None = None,
        keep_best: int = 0,
    ):
        policies: list[preserve.PreservationPolicy] = [preserve.LatestN(keep_last)]
        if keep_every:
            policies.append(preserve.EveryNSteps(keep_every))
        if keep_best:
            # Orbax takes the largest; checkpoints without a figure are not candidates.
            policies.append(
                preserve.BestN(
                    get_metric_fn=lambda metrics: -metrics["loss"],
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            run_dir / FOLDER,
            item_names=("state", "data", "meta"),
            item_handlers={
                # Weights compress by a tenth at most, for three times the time and a
                # second copy in memory.
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "data": ocp.JsonCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preserve.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: State,
        data: dict[str, Any],
        meta: dict[str, Any],
        loss: float | None = None,
    ) -> None:
        """Starts writing a checkpoint; returns once the state may be donated.

        Args:
          state: saved under its own step; a step that is there already is left alone.
          data: the iterator's position and the data's fingerprint.
          meta: the config and library versions.
          loss: validation loss, by which the best are kept.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(_as_tree(state)),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics=None if loss is None else {"loss": loss},
        )

    def restore(self, shapes: State, step: int) -> tuple[State, dict, dict]:
        """The (state, data, meta) of a step, the state placed as `shapes` says."""
        tree = _as_tree(shapes)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    tree,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                ),
                data=ocp.args.JsonRestore(),
                meta=ocp.args.JsonRestore(),
            ),
        )
        return _from_tree(restored.state, shapes), restored.data, restored.meta

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases Orbax's threads."""
        self.wait()
        self._manager.close()


def _as_tree(state: State) -> dict:
    # Named by the leaves' own paths: an optimizer's nested tuples become dictionaries,
    # so what is on disk is readable without the classes that made it.
    tree: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        *folders, name = map(_key_name, path)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def _from_tree(tree: dict, like: State) -> State:
    def find(path, _):
        node = tree
        for key in path:
            node = node[_key_name(key)]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def _key_name(key) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"cannot name {key!r}")


def saved_steps(run_dir: pathlib.Path) -> list[int]:
    """Steps with a finished checkpoint under `run_dir`, in order."""
    folder = pathlib.Path(run_dir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def save_model(run_dir: pathlib.Path, params: dict, extra: dict | None = None) -> None:
    """Writes step 0 of a run that starts from these parameters, for an import."""
    checkpoints = Checkpoints(pathlib.Path(run_dir).absolute())
    checkpoints.save(State(jax.numpy.int32(0), params, extra or {}, ()), {}, {})
    checkpoints.close()


class SavedState:
    """A checkpoint of a run, of which parts can be read.

    Attributes:
      folder: the checkpoint's.
      step: its step.
      shapes: of every array of the state, by path: "params/tokens/table".
      params: "ema" where averaged parameters were kept, and are asked for, or "params".
    """

    def __init__(
        self, run_dir: str | pathlib.Path, step: int | None = None, ema: bool = True
    ):
        """Reads what a checkpoint has, the newest if no step is given.

        Raises:
          UserError: if there is no such checkpoint.
        """
        folder = pathlib.Path(run_dir).absolute() / FOLDER
        steps = saved_steps(folder.parent)
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"{folder}: no {wanted}; found {steps or 'none'}.")
        self.step = steps[-1] if step is None else step
        self.folder = folder / str(self.step)
        with _reader(folder) as reader:
            tree = reader.item_metadata(self.step)["state"].tree
        self.shapes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                tree, is_leaf=lambda x: hasattr(x, "shape")
            )
        }
        self.params = "ema" if ema and "ema" in tree else "params"

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters, by their own path: "tokens/table"."""
        prefix = f"{self.params}/"
        return {
            name.removeprefix(prefix): shape
            for name, shape in self.shapes.items()
            if name.startswith(prefix)
        }

    def read_params(self, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict:
        """Arrays by path, of the parameters that are wanted, placed as asked."""
        tree = traverse_util.unflatten_dict(wanted, sep="/")
        read = self.read({self.params: tree})[self.params]
        return traverse_util.flatten_dict(read, sep="/")

    def read(self, tree: dict) -> dict:
        """A part of the state, each array read straight to its place on the mesh.

        Args:
          tree: nested dict of ShapeDtypeStructs with their shardings.
        """
        # An array is held more than once while it is read, so that one large one is
        # read at a time.
        leaves = jax.tree.leaves(tree)
        largest = max(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        args = ocp.args.PyTreeRestore(
            tree,
            restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
            partial_restore=True,
        )
        with _reader(self.folder.parent, 1.01e-9 * largest) as reader:
            return reader.restore(self.step, args=ocp.args.Composite(state=args))[
                "state"
            ]


def restore_model(
    run_dir: pathlib.Path,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
    step: int | None = None,
    ema: bool = True,
) -> tuple[dict, int]:
    """The variables of a checkpoint, each leaf read straight to its place on the mesh.

    Args:
      run_dir: the run directory.
      objective: the run's, whose model tells names and shapes.
      mesh: where to put them.
      rules: logical to mesh axes.
      step: of the checkpoint; None for the newest.
      ema: prefer the averaged parameters where the run kept them.

    Returns:
      ({"params": …, other collections}, the step).

    Raises:
      UserError: if there is no such checkpoint, or it does not fit the model.
    """
    saved = SavedState(run_dir, step, ema)
    axes, shapes = abstract_variables(objective)
    places = named_shardings(param_specs(axes, shapes, mesh, rules), mesh)
    shapes = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
        shapes,
        places,
    )
    params = shapes.pop("params")
    tree = {saved.params: params, "extra": shapes} if shapes else {saved.params: params}
    _check_fits(tree, saved)
    restored = saved.read(tree)
    return {"params": restored[saved.params], **restored.get("extra", {})}, saved.step


def _check_fits(wanted: dict, saved: SavedState) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if saved.shapes.get(name) != leaf.shape:
            raise UserError(
                f"{saved.folder}: {name} should be {leaf.shape} by config.gin, found "
                f"{saved.shapes.get(name, 'nothing')}."
            )


def _reader(folder: pathlib.Path, gigabytes: float | None = None):
    """Orbax's manager of the checkpoints in a folder, for reading alone."""
    return ocp.CheckpointManager(
        folder,
        item_names=("state", "data", "meta"),
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(restore_concurrent_gb=gigabytes),
            "data": ocp.JsonCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(create=False),
    )
