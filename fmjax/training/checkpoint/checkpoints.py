"""Checkpoints of a run: checkpoints/STEP/{state,data,meta,digests}, written by Orbax.

A step's folder appears whole or not at all: Orbax writes beside it and renames. What it
holds is compared with its digests when it is read; one that is damaged is set aside for
the one before.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from fmjax.errors import UserError
from fmjax.training.checkpoint.digest_item import DigestSave
from fmjax.training.checkpoint.digests import own_pieces, sealed
from fmjax.training.checkpoint.saved_state import (
    FOLDER,
    ITEMS,
    Damaged,
    SavedState,
    item_handlers,
)
from fmjax.training.state import State

DAMAGED = "damaged"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read whole.

    Attributes:
      step: of the state.
      state: on the mesh that was asked for.
      data: what was saved of the data.
      meta: what was saved beside.
    """

    step: int
    state: State
    data: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run_dir: the run directory.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints at multiples of this step are kept for ever.
      keep_best: checkpoints of the lowest validation loss kept besides.
      losses: validation losses that are known already, by step.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_every: int | None = None,
        keep_best: int = 0,
        losses: Mapping[int, float] = types.MappingProxyType({}),
    ):
        self._run_dir = run_dir
        self._clear_halves()
        self._waiter: threading.Thread | None = None
        self._failure: Exception | None = None
        self._losses = dict(losses)
        policies: list[preserve.PreservationPolicy] = [preserve.LatestN(keep_last)]
        if keep_every:
            policies.append(preserve.EveryNSteps(keep_every))
        if keep_best:
            policies.append(_KeepBest(self._losses, keep_best))
        self._manager = ocp.CheckpointManager(
            run_dir / FOLDER,
            item_names=ITEMS,
            # Weights compress by a tenth at most, for three times the time and a
            # second copy in memory.
            item_handlers=item_handlers(
                ocp.PyTreeCheckpointHandler(use_compression=False)
            ),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preserve.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                # In the background, a folder that is refused is noticed when the other
                # threads have waited for it for five minutes.
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
          state: saved under its own step; a step that is there already is left alone.
          data: the iterator's position and the data's fingerprint.
          meta: the config and library versions.

        Raises:
          Exception: whatever the file system says, of this save or the one before;
            `recover` is to be called then.
        """
        step = int(state.step)
        self.wait()
        if step in self._manager.all_steps():
            return
        tree = _as_tree(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(tree),
                data=ocp.args.JsonSave(sealed(data)),
                meta=ocp.args.JsonSave(sealed(meta)),
                digests=DigestSave(own_pieces(tree)),
            ),
        )
        # Orbax raises a failure of a background save only where something waits for it.
        self._waiter = threading.Thread(target=self._watch, daemon=True)
        self._waiter.start()

    def note_loss(self, step: int, loss: float) -> None:
        """Tells the validation loss at a step, by which the best are kept.

        Checkpoints are deleted while later ones are written: the loss may come after
        the step was saved, and counts from the next save on.
        """
        self._losses[step] = loss

    def probe(self, state: State) -> None:
        """Raises an OSError where a checkpoint cannot be written now.

        That costs next to nothing, while half a save can keep the other processes of a
        run waiting for this one until Orbax's time is up.
        """
        folder = self._run_dir / FOLDER
        disk = shutil.disk_usage(folder)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        # Some file systems do not know their size.
        if disk.total and disk.free < size:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: {size:,} bytes are to be saved, "
                f"{disk.free:,} are free",
            )
        probe = folder / f".probe-{jax.process_index()}"
        probe.mkdir(exist_ok=True)
        (probe / "byte").write_bytes(b"0")
        shutil.rmtree(probe)

    def _watch(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failure = error

    def restore(self, shapes: State, step: int) -> Restored:
        """A checkpoint, its state placed as `shapes` says.

        Raises:
          Damaged: it cannot be read, or is not what its digests say.
          UserError: it is whole, and of another state than `shapes`.
        """
        saved = SavedState(self._run_dir, step)
        tree = _as_tree(shapes)
        _check_fits(tree, saved)
        data, meta = saved.read_records()
        state = saved.read(tree, one_by_one=False)
        return Restored(step, _from_tree(state, shapes), data, meta)

    def restore_newest(
        self, shapes: State, say: Callable[[str], None], before: int | None = None
    ) -> Restored | None:
        """The newest checkpoint that is whole; None if there is no checkpoint.

        Damaged ones that are newer are moved to the run directory's `damaged`.

        Args:
          shapes: where to put the state.
          say: is told what was set aside.
          before: only checkpoints of smaller steps count.

        Raises:
          UserError: there are checkpoints, and none is whole; all are left in place.
        """
        steps = [s for s in self.steps if before is None or s < before]
        found: dict[int, str] = {}
        for step in reversed(steps):
            try:
                restored = self.restore(shapes, step)
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

    def drop_after(self, step: int) -> None:
        """Deletes checkpoints past a step, of a future that a rollback has undone.

        Nothing may be being written.
        """
        for later in [s for s in self.steps if s > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          Exception: whatever the file system says; `recover` is to be called then.
        """
        if self._waiter is None:
            return
        self._waiter.join()
        self._waiter = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def recover(self) -> None:
        """Clears away a save that failed, in this process or another; all call it."""
        # Each of Orbax's threads raises once.
        with contextlib.suppress(Exception):
            self._manager.wait_until_finished()
        self._clear_halves()
        # Checkpoints that were to be deleted for the failed one still exist.
        self._manager.reload()

    def _clear_halves(self) -> None:
        """Deletes what a save has left that failed or was killed."""
        if jax.process_index() == 0:
            for half in (self._run_dir / FOLDER).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)

    def settle(self) -> None:
        """Waits, whether what is being written comes to be or not."""
        with contextlib.suppress(Exception):
            self.wait()

    def check(self) -> None:
        """Raises what `wait` would, of a save that has failed by now; does not wait."""
        if self._waiter is not None and not self._waiter.is_alive():
            self.wait()

    def close(self) -> None:
        """Waits, and releases Orbax's threads; a failure now is not reported."""
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
            os.replace(self._run_dir / FOLDER / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} is set aside")
        self._manager.reload()
        return target


class _KeepBest:
    """Orbax's policy for the checkpoints of lowest loss.

    Its own, `BestN`, forgets the losses when a run is started again.
    """

    def __init__(self, losses: dict[int, float], count: int):
        self._losses, self._count = losses, count

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]
        known = [step for step in steps if step in self._losses]
        best = sorted(known, key=lambda step: self._losses[step])[: self._count]
        return [step in best for step in steps]


# Muon's and Adafactor's states of experts changed when `expert` became a batch axis.
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
    for name in sorted(wanted.keys() | saved.arrays.keys()):
        if wanted.get(name) != saved.arrays.get(name):
            here, there = (
                "{1} {0}".format(*kind) if kind else "nothing"
                for kind in (wanted.get(name), saved.arrays.get(name))
            )
            raise UserError(
                f"{saved.folder}: {name} should be {here} by the config, found {there}."
                + (_OTHER_OPTIMIZER if name.startswith("opt_state/") else "")
            )


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


def save_model(run_dir: pathlib.Path, params: dict, extra: dict | None = None) -> None:
    """Writes step 0 of a run that starts from these parameters, for an import."""
    checkpoints = Checkpoints(pathlib.Path(run_dir).absolute())
    checkpoints.save(State(jax.numpy.int32(0), params, extra or {}, ()), {}, {})
    checkpoints.wait()
    checkpoints.close()
