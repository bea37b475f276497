"""A checkpoint as others read it: parts of its state, checked against their digests."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from fmjax.errors import UserError
from fmjax.objectives.objective import Objective
from fmjax.sharding.rules import LogicalRules, named_shardings, param_specs
from fmjax.training.checkpoint.digest_item import DigestHandler, DigestRestore
from fmjax.training.checkpoint.digests import damaged
from fmjax.training.state import abstract_variables

FOLDER = "checkpoints"
# What a checkpoint is made of.
ITEMS = ("state", "data", "meta", "digests")


def item_handlers(state: ocp.PyTreeCheckpointHandler) -> dict:
    """Orbax's handlers of the items, with one for the state."""
    return {
        "state": state,
        "data": ocp.JsonCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
        "digests": DigestHandler(),
    }


def saved_steps(run_dir: pathlib.Path) -> list[int]:
    """Steps with a finished checkpoint under `run_dir`, in order."""
    folder = pathlib.Path(run_dir) / FOLDER
    if not folder.is_dir():
        return []
    # As Orbax spells them: "²" is a digit too, and "007" another folder than "7".
    names = [p.name for p in folder.iterdir() if p.is_dir()]
    return sorted(int(n) for n in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", n))


def in_a_line(error: Exception) -> str:
    """What an exception says, its first line."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) < 200 else text[:200] + "…"


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
          UserError: if there is no such checkpoint, or it is damaged.
        """
        folder = pathlib.Path(run_dir).absolute() / FOLDER
        steps = saved_steps(folder.parent)
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"{folder}: no {wanted}; found {steps or 'none'}.")
        self.step = steps[-1] if step is None else step
        self.folder = folder / str(self.step)
        with self._reads(), _reader(folder) as reader:
            tree = reader.item_metadata(self.step)["state"].tree
            self.shapes = {
                jax.tree_util.keystr(path, simple=True, separator="/"): tuple(
                    leaf.shape
                )
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
        with self._reads(), _reader(self.folder.parent, 1.01e-9 * largest) as reader:
            items = reader.restore(
                self.step,
                args=ocp.args.Composite(state=args, digests=DigestRestore()),
            )
            bad = damaged(items.state, items.digests)
        if bad:
            raise UserError(
                f"{self.folder} is damaged: {', '.join(bad[:3])} not what was saved. "
                "Take another step's."
            )
        return items.state

    @contextlib.contextmanager
    def _reads(self) -> Iterator[None]:
        """Inside, whatever a damaged file makes the libraries raise is a UserError."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"{self.folder} cannot be read: {in_a_line(error)}. Take another."
            ) from error


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
    saved, tree = find_model(run_dir, objective, mesh, rules, step, ema)
    restored = saved.read(tree)
    return {"params": restored[saved.params], **restored.get("extra", {})}, saved.step


def find_model(
    run_dir: pathlib.Path,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
    step: int | None = None,
    ema: bool = True,
) -> tuple[SavedState, dict]:
    """A checkpoint, and what of it `SavedState.read` is to read for `restore_model`."""
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
    return saved, tree


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
        item_names=ITEMS,
        item_handlers=item_handlers(
            ocp.PyTreeCheckpointHandler(restore_concurrent_gb=gigabytes)
        ),
        options=ocp.CheckpointManagerOptions(create=False),
    )
