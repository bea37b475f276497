"""Checkpoints of a run: checkpoints/STEP/{state,data,meta,digests}, written by Orbax.

Writing is atomic: Orbax writes a step to a temporary folder and renames it; in a
bucket, it writes a last object that makes the step count. Reading compares the contents
with their digests; a damaged checkpoint is moved to `damaged` and the one before it is
used.
"""

import contextlib
import dataclasses
import errno
import math
import os
import pathlib
import shutil
import threading
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.bucket_steps import clear_uncommitted, set_aside
from fmjax.training.checkpoint.digest_item import DigestSave
from fmjax.training.checkpoint.digests import own_pieces, sealed
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.checkpoint.retention import KeepBest, KeepRegistered
from fmjax.training.checkpoint.saved_state import (
    FOLDER,
    ITEMS,
    REFERENCES,
    Damaged,
    SavedState,
    item_handlers,
    orbax_folder,
    saved_steps,
)
from fmjax.training.state import State

DAMAGED = "damaged"
# Of a bucket, as Orbax does on GCS: an object is written by one request, and S3 refuses
# those above 5 GB.
_OBJECT_BYTES = 400 * 2**20


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and agrees with its digests.

    Attributes:
      step: of the state.
      state: on the mesh that was asked for.
      data: the iterator's position and the data's fingerprint.
      meta: the config and library versions.
    """

    step: int
    state: State
    data: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory.

    The one that the run's registry gives a stage is never deleted.

    Args:
      run_dir: the run directory.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints at multiples of this step are never deleted; None for
        none.
      keep_best: number of checkpoints of the best validation that are also kept.
      values: of the validation known so far, by step.
      best_mode: whether the lowest value ("min") or the highest ("max") is the best.
      references: parameters that are those of other runs.
      omitted: paths in the parameters of what follows from references, which is not
        written.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_every: int | None = None,
        keep_best: int = 0,
        values: Mapping[int, float] = types.MappingProxyType({}),
        best_mode: str = "min",
        references: Sequence[Reference] = (),
        omitted: Collection[str] = (),
    ):
        self._run_dir = run_dir
        self._folder = orbax_folder(run_dir / FOLDER)
        self._object_bytes = _OBJECT_BYTES if is_bucket(run_dir) else None
        self._clear_halves()
        self._waiter: threading.Thread | None = None
        self._failure: Exception | None = None
        self._values = dict(values)
        self._references = references
        self._omitted = {f"params/{path}" for path in omitted}
        policies: list[preserve.PreservationPolicy] = [preserve.LatestN(keep_last)]
        if keep_every:
            policies.append(preserve.EveryNSteps(keep_every))
        if keep_best:
            policies.append(KeepBest(self._values, keep_best, best_mode))
        self._registered = KeepRegistered(run_dir)
        policies.append(self._registered)
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=ITEMS,
            # No compression: weights shrink by a tenth at most, and it takes three
            # times as long and a second copy in memory.
            item_handlers=item_handlers(
                ocp.PyTreeCheckpointHandler(use_compression=False)
            ),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preserve.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                # If folders were created in the background, a failure to create one
                # would be reported only after the other threads' wait of five minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
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
    ) -> None:
        """Starts writing a checkpoint; returns once the state may be donated.

        Args:
          state: saved under its own step; a step that is already saved is skipped.
          data: the iterator's position and the data's fingerprint.
          meta: the config and library versions.

        Raises:
          Exception: an error of the file system in this save or the one before; call
            `recover` then.
        """
        step = int(state.step)
        self.wait()
        if step in self._manager.all_steps():
            return
        self._registered.read()
        tree = _as_tree(state, self._omitted)
        if self._references:
            own = [each.as_json(self._run_dir) for each in self._references]
            meta = meta | {REFERENCES: own}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(
                    tree, ocdbt_target_data_file_size=self._object_bytes
                ),
                data=ocp.args.JsonSave(sealed(data)),
                meta=ocp.args.JsonSave(sealed(meta)),
                digests=DigestSave(own_pieces(tree)),
            ),
        )
        # Orbax raises a failure of a background save only where something waits for it.
        self._waiter = threading.Thread(target=self._watch, daemon=True)
        self._waiter.start()

    def note_value(self, step: int, value: float) -> None:
        """Records the validation at a step, for `keep_best`; not a value that is NaN.

        It may be recorded after the step was saved: old checkpoints are deleted during
        the next save, which uses all values recorded by then.
        """
        if math.isfinite(value):
            self._values[step] = value

    def probe(self, state: State) -> None:
        """Raises an OSError if a checkpoint cannot be written now.

        The check is cheap. A save that fails half way can keep the other processes
        waiting until Orbax's timeout.
        """
        folder = self._run_dir / FOLDER
        probe = folder / f".probe-{jax.process_index()}"
        if is_bucket(folder):
            objects.write(probe / "byte", b"0")
            objects.remove(probe / "byte")
            return
        disk = shutil.disk_usage(folder)
        saved = _as_tree(state, self._omitted)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(saved))
        # Some file systems report a size of 0.
        if disk.total and disk.free < size:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: {size:,} bytes are to be saved, "
                f"{disk.free:,} are free",
            )
        probe.mkdir(exist_ok=True)
        (probe / "byte").write_bytes(b"0")
        shutil.rmtree(probe)

    def _watch(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failure = error

    def restore(self, shapes: State, step: int, base: State | None = None) -> Restored:
        """Reads a checkpoint, its state sharded as in `shapes`.

        Args:
          shapes: a State of ShapeDtypeStructs with shardings.
          step: of the checkpoint.
          base: a state with the parameters that are those of other runs; None if there
            are none.

        Raises:
          Damaged: it cannot be read, or differs from its digests.
          UserError: it is intact, but its state does not match `shapes`.
        """
        saved = SavedState(self._run_dir, step)
        tree = _as_tree(shapes, self._omitted)
        _check_fits(tree, saved)
        data, meta = saved.read_records()
        state = saved.read(tree, one_by_one=False)
        if base is not None:
            _merge(state, _as_tree(base), self._omitted)
        return Restored(step, _from_tree(state, shapes), data, meta)

    def restore_newest(
        self, shapes: State, say: Callable[[str], None], base: State | None = None
    ) -> Restored | None:
        """Reads the newest intact checkpoint; None if there is no checkpoint.

        Damaged checkpoints that are newer are moved to the run directory's `damaged`.

        Args:
          shapes: a State of ShapeDtypeStructs with shardings.
          say: called with a message for each checkpoint that is moved.
          base: as of `restore`.

        Raises:
          UserError: there are checkpoints, but all are damaged; none is moved.
        """
        self._check_listing()
        found: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                restored = self.restore(shapes, step, base)
            except Damaged as error:
                found[step] = error.why
                continue
            for bad, why in found.items():
                place = self._set_aside(bad)
                say(f"checkpoint {bad} is damaged ({why}); set aside as {place}")
            return restored
        if found:
            table = "\n".join(f"  {step}: {why}" for step, why in found.items())
            raise UserError(
                f"{self._run_dir / FOLDER}: no checkpoint is whole.\n{table}\n"
                "Nothing was changed. Put back a copy of one, or take a new --run_dir."
            )
        return None

    def _check_listing(self) -> None:
        """Raises an OSError if Orbax misses a checkpoint of a bucket.

        Orbax takes a store that does not answer for one without the checkpoint, and the
        run would start again from an older one.
        """
        if not is_bucket(self._folder) or self.steps == saved_steps(self._run_dir):
            return
        self._manager.reload()
        if self.steps != (saved := saved_steps(self._run_dir)):
            raise OSError(f"{self._folder} lists {self.steps}, then {saved}")

    def drop_after(self, step: int) -> None:
        """Deletes checkpoints past a step, which a rollback has undone.

        No save may be in progress.
        """
        for later in [s for s in self.steps if s > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          Exception: an error of the file system; call `recover` then.
        """
        if self._waiter is None:
            return
        self._waiter.join()
        self._waiter = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def recover(self) -> None:
        """Removes a save that failed in any process; every process must call it."""
        # Each of Orbax's threads raises its error once; it was reported already.
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        self._clear_halves()
        # Checkpoints that the failed save would have replaced still exist, though the
        # manager no longer lists them.
        self._manager.reload()

    def _clear_halves(self) -> None:
        """Deletes the temporary folders of saves that failed or were killed."""
        if jax.process_index() != 0:
            return
        if is_bucket(self._folder):
            # As on a disk, what is left is deleted by the next save or start.
            with contextlib.suppress(OSError):
                clear_uncommitted(self._folder)
            return
        for half in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(half, ignore_errors=True)

    def settle(self) -> None:
        """Waits for the save in progress, whether or not it succeeds."""
        with contextlib.suppress(Exception):
            self.wait()

    def check(self) -> None:
        """Raises the error of a save that has failed, as `wait` does; does not wait."""
        if self._waiter is not None and not self._waiter.is_alive():
            self.wait()

    def close(self) -> None:
        """Waits, and ends Orbax's threads; an error at this point is not reported."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def _set_aside(self, step: int) -> pathlib.Path:
        target = self._run_dir / DAMAGED / str(step)
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            count = 1
            while target.exists():
                count += 1
                target = target.with_name(f"{step}-{count}")
            if is_bucket(target):
                set_aside(self._folder / str(step), target)
            else:
                os.replace(self._folder / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} is set aside")
        self._manager.reload()
        return target


# The states that Muon and Adafactor keep for experts changed when `expert` became a
# batch axis.
_OTHER_OPTIMIZER = (
    " The optimizer state was saved with another experiment.optimizer, or for a "
    "mixture of experts by an earlier version of fmjax, and cannot be continued. To "
    "start a new run from these parameters, use another --run_dir and bind "
    "experiment.init_from=(@init_from(),) and init_from.run to this run directory."
)


def _check_fits(tree: dict, saved: SavedState) -> None:
    wanted = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            leaf.shape,
            str(leaf.dtype),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    averages = any(name.startswith("ema/") for name in wanted)
    names = wanted.keys() | saved.stored.keys()
    # Parameters first: of all differences, theirs explain most.
    for name in sorted(names, key=lambda name: (not name.startswith("params/"), name)):
        if averages and name.startswith("ema/") and name not in wanted:
            # Earlier versions also kept averages of frozen parameters.
            continue
        kinds = here, there = wanted.get(name), saved.stored.get(name)
        if here == there:
            continue
        asked, found = (
            "{1} {0}".format(*kind) if kind else "nothing" for kind in kinds
        )
        help = _OTHER_OPTIMIZER if name.startswith("opt_state/") else ""
        if name.startswith("params/") and here and there and here[0] == there[0]:
            help = (
                " freeze.dtype tells the dtype of frozen parameters; a run that is to "
                "train them, or to keep them in another, starts from this one by "
                "experiment.init_from."
            )
        raise UserError(
            f"{saved.folder}: {name} should be {asked} by the config, found {found}."
            f"{help}"
        )


def _as_tree(state: State, without: Collection[str] = ()) -> dict:
    # Keyed by the leaves' paths: an optimizer's nested tuples become dictionaries, so
    # that a checkpoint can be read without the classes of the optimizer.
    tree: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        *folders, name = _names(path)
        if without and "/".join([*folders, name]) in without:
            continue
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def _merge(tree: dict, other: dict, paths: Collection[str]) -> None:
    """Puts the leaves at `paths` of another tree into a tree."""
    for path in paths:
        *folders, name = path.split("/")
        into, source = tree, other
        for folder in folders:
            into, source = into.setdefault(folder, {}), source[folder]
        into[name] = source[name]


def _from_tree(tree: dict, like: State) -> State:
    def find(path, _):
        node = tree
        for name in _names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def _names(path: tuple) -> list[str]:
    """Names of the attributes, keys and indices along the path to a leaf."""
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def save_model(
    run_dir: pathlib.Path,
    params: dict,
    extra: dict | None = None,
    references: Sequence[Reference] = (),
) -> None:
    """Writes the checkpoint of step 0 for an imported model.

    Args:
      run_dir: the run directory.
      params: nested dict of parameters.
      extra: the other collections by name; None for none.
      references: parameters that are those of other runs.
    """
    omitted = [path for each in references for path in each.arrays]
    checkpoints = Checkpoints(as_path(run_dir), references=references, omitted=omitted)
    checkpoints.save(State(jax.numpy.int32(0), params, extra or {}, ()), {}, {})
    checkpoints.wait()
    checkpoints.close()
