"""Reading checkpoints: a state or parts of it, checked against their digests."""

import functools
import hashlib
import math
import pathlib
import re
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.paths import as_path, is_bucket
from fmjax.training.checkpoint.bucket_steps import committed_steps
from fmjax.training.checkpoint.digest_item import DigestHandler, DigestRestore
from fmjax.training.checkpoint.digests import Digests, damaged, opened
from fmjax.training.checkpoint.reference import Reference

FOLDER = "checkpoints"
# Items of a checkpoint.
ITEMS = ("state", "data", "meta", "digests")
# The entry of "meta" with the parameters that are those of other runs.
REFERENCES = "references"
# Reading is tried again after these pauses: a network file system may fail briefly.
_PAUSES_SECONDS = (2.0,)


def item_handlers(state: ocp.PyTreeCheckpointHandler) -> dict:
    """Orbax's handlers of the items, given the handler of the state."""
    return {
        "state": state,
        "data": ocp.JsonCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
        "digests": DigestHandler(),
    }


def saved_steps(run_dir: pathlib.Path) -> list[int]:
    """Steps with a finished checkpoint under `run_dir`, in order."""
    folder = as_path(run_dir) / FOLDER
    # Only names that Orbax writes: "²" is a digit too, and "007" is not step 7.
    is_step = re.compile(r"0|[1-9][0-9]{0,17}").fullmatch
    if is_bucket(folder):
        return committed_steps(folder)
    if not folder.is_dir():
        return []
    names = [p.name for p in folder.iterdir() if p.is_dir()]
    return sorted(int(n) for n in names if is_step(n))


def orbax_folder(folder: pathlib.Path) -> pathlib.Path:
    """A folder of checkpoints for Orbax, which needs help to write to some buckets."""
    if is_bucket(folder):
        from fmjax.training.checkpoint.bucket_arrays import use_buckets

        use_buckets()
    return folder


def parameter_count(run_dir: pathlib.Path, step: int) -> int | None:
    """Number of parameters in a checkpoint and in those that it names; None if damaged.

    It is read from digests and metadata alone.
    """
    try:
        pieces, references = _described(run_dir, step)
        named = [each.get("parameters", 0) for each in references]
    # A damaged file can have any content.
    except Exception:
        return None
    shapes = {part.path: part.shape for part in pieces}
    sizes = [math.prod(s) for path, s in shapes.items() if path.startswith("params/")]
    return sum(sizes) + sum(named) or None


def parameter_digest(run_dir: pathlib.Path, step: int) -> str:
    """One digest of the parameters of a checkpoint, and of those that it names.

    One process may read it alone.

    Raises:
      Damaged: its digests or its metadata cannot be read.
    """
    try:
        pieces, references = _described(run_dir, step)
        named = sorted(each["digest"] for each in references)
    # A damaged file can have any content.
    except Exception as error:
        folder = as_path(run_dir) / FOLDER / str(step)
        raise Damaged(folder, f"cannot be read: {in_a_line(error)}") from error
    own = sorted(
        f"{part} {value}"
        for part, value in pieces.items()
        if part.path.startswith(("params/", "ema/"))
    )
    return hashlib.sha256("\n".join([*own, *named]).encode()).hexdigest()


def _described(run_dir: pathlib.Path, step: int) -> tuple[Digests, list[dict]]:
    """Digests of the arrays of a checkpoint, and what it says of other runs' arrays."""
    folder = epath.Path(run_dir) / FOLDER / str(step)
    pieces = DigestHandler().restore(folder / "digests", DigestRestore())
    meta = ocp.JsonCheckpointHandler().restore(folder / "meta")
    return pieces, opened(meta).get(REFERENCES, [])


def in_a_line(error: Exception) -> str:
    """The first line of an exception's message."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) < 200 else text[:200] + "…"


class Damaged(UserError):
    """A checkpoint that cannot be read, or differs from its digests.

    Attributes:
      why: what is wrong with it.
    """

    def __init__(self, folder: pathlib.Path, why: str):
        super().__init__(f"{folder} {why}. Take another step's.")
        self.why = why


class SavedState:
    """One checkpoint, read whole or in part; every process of a run must read together.

    Attributes:
      folder: the checkpoint's.
      step: its step.
      stored: (shape, dtype) of every array in it, by path, such as
        "params/tokens/table".
      references: parameters that it names in other runs instead.
      averaged: whether averaged parameters were saved and are to be read.
    """

    def __init__(
        self, run_dir: str | pathlib.Path, step: int | None = None, ema: bool = True
    ):
        """Opens a checkpoint and reads its metadata and digests.

        Args:
          run_dir: the run directory.
          step: of the checkpoint; None for the newest.
          ema: read averaged parameters where the run kept them.

        Raises:
          Damaged: its digests cannot be read.
          UserError: there is no such checkpoint.
        """
        folder = as_path(run_dir) / FOLDER
        steps = saved_steps(folder.parent)
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"{folder}: no {wanted}; found {steps or 'none'}.")
        self.step = steps[-1] if step is None else step
        self.folder = folder / str(self.step)
        items = self._restore(digests=DigestRestore(), meta=ocp.args.JsonRestore())
        self._digests = items["digests"]
        if not self._digests:
            raise Damaged(self.folder, "has no digests")
        self.stored = {part.path: (part.shape, part.dtype) for part in self._digests}
        self.averaged = ema and any(path.startswith("ema/") for path in self.stored)
        self.references = tuple(
            Reference.of_json(fields, folder.parent)
            for fields in items["meta"].get(REFERENCES, ())
        )

    @functools.cached_property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """`stored`, and likewise the arrays that it names in other runs.

        Raises:
          UserError: another run is missing, or its arrays are not those of training.
        """
        every = dict(self.stored)
        for reference, saved in zip(self.references, self.bases):
            shapes = saved.param_shapes
            for path, (source, dtype) in reference.arrays.items():
                every[f"params/{path}"] = (shapes[source], dtype)
        return every

    @functools.cached_property
    def bases(self) -> "list[SavedState]":
        """The checkpoints of `references`, in the same order.

        Raises:
          UserError: another run is missing, or its arrays are not those of training.
        """
        return [self.other(reference) for reference in self.references]

    def other(self, reference: Reference) -> "SavedState":
        """The checkpoint of another run that has parameters of this one.

        Raises:
          UserError: it is missing, or its arrays are not those of training.
        """
        base = f"{self.folder}: its frozen parameters are those of {reference.run}"
        try:
            saved = SavedState(reference.run, reference.step)
        except UserError as error:
            raise UserError(f"{base} at step {reference.step}: {error}") from None
        sources = [source for source, _ in reference.arrays.values()]
        lacking = [name for name in sources if name not in saved.param_shapes]
        if lacking or saved.digest_of(sources) != reference.digest:
            raise UserError(
                f"{base} at step {reference.step}, which has changed since. Expected "
                "the same values; put that checkpoint back."
            )
        return saved

    def digest_of(self, names: Iterable[str]) -> str:
        """One digest of parameters, by path within them: of their stored digests."""
        places = {"/".join((self.place(name)[0], name)) for name in names}
        lines = sorted(
            f"{part} {digest}"
            for part, digest in self._digests.items()
            if part.path in places
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def run_dir(self) -> pathlib.Path:
        """Its run directory."""
        return self.folder.parent.parent

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters, by path within them, such as "tokens/table"."""
        return {
            path.removeprefix("params/"): shape
            for path, (shape, _) in self.arrays.items()
            if path.startswith("params/")
        }

    def place(self, name: str) -> tuple[str, str]:
        """Where a parameter is stored: "ema" or "params", and its dtype there.

        The average is used where it was saved and is to be read. There is none for
        parameters that are never trained.

        Args:
          name: path of the parameter within the parameters.
        """
        tree = "ema" if self.averaged and f"ema/{name}" in self.arrays else "params"
        return tree, self.arrays[f"{tree}/{name}"][1]

    def read_params(
        self, wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        """Reads parameters, by path, in the dtypes that they were saved in.

        Args:
          wanted: shapes and shardings by path.

        Raises:
          Damaged: an array cannot be read, or differs from its digests.
          MemoryError: there is too little memory for them.
        """
        trees: dict[str, dict] = {"ema": {}, "params": {}}
        elsewhere: dict[str, jax.ShapeDtypeStruct] = {}
        for name, struct in wanted.items():
            tree, dtype = self.place(name)
            struct = struct.update(dtype=jnp.dtype(dtype))
            if f"{tree}/{name}" in self.stored:
                trees[tree][name] = struct
            else:
                elsewhere[name] = struct
        nested = {
            tree: traverse_util.unflatten_dict(structs, sep="/")
            for tree, structs in trees.items()
            if structs
        }
        read: dict[str, jax.Array] = {}
        for tree in self.read(nested).values() if nested else ():
            read |= traverse_util.flatten_dict(tree, sep="/")
        read |= self._read_elsewhere(elsewhere)
        return {name: read[name] for name in wanted}

    def _read_elsewhere(
        self, wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for reference, saved in zip(self.references, self.bases if wanted else ()):
            sources = {
                name: reference.arrays[name][0]
                for name in wanted
                if name in reference.arrays
            }
            if not sources:
                continue
            read = saved.read_params(
                {source: wanted[name] for name, source in sources.items()}
            )
            for name, source in sources.items():
                found[name] = read[source].astype(wanted[name].dtype)
        return found

    def read(self, tree: dict, one_by_one: bool = True) -> dict:
        """Reads a part of the state, each array directly into its sharding.

        Args:
          tree: nested dict of ShapeDtypeStructs with their shardings.
          one_by_one: limits the bytes read at a time to those of the largest array,
            because an array is held in memory more than once while it is read.

        Raises:
          Damaged: an array cannot be read, or differs from its digests.
          MemoryError: there is too little memory for it.
        """
        limit = None
        if one_by_one:
            sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)]
            limit = 1.01e-9 * max(sizes)
        args = ocp.args.PyTreeRestore(
            tree,
            restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
            partial_restore=True,
        )
        state = self._restore(limit, state=args)["state"]
        if bad := damaged(state, self._digests):
            what = f"is damaged: {', '.join(bad[:3])} not what was saved"
            raise Damaged(self.folder, what)
        return state

    def read_extra(self, wanted: dict) -> dict:
        """Reads collections other than the parameters, by name; see `read`.

        Args:
          wanted: a nested dict of ShapeDtypeStructs with their shardings; may be empty.
        """
        return self.read({"extra": wanted})["extra"] if wanted else {}

    def read_records(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the items "data" (iterator position, fingerprint) and "meta".

        Raises:
          Damaged: they cannot be read, or differ from their digests.
        """
        items = self._restore(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        return items["data"], items["meta"]

    def _restore(self, gigabytes: float | None = None, **items) -> dict[str, Any]:
        """Reads items of the checkpoint, with retries; all processes succeed or none.

        Raises:
          Damaged: a process cannot read them.
          MemoryError: a process has too little memory for them.
        """

        def read() -> dict[str, Any]:
            with _reader(self.folder.parent, gigabytes) as reader:
                found = reader.restore(self.step, args=ocp.args.Composite(**items))
            return {
                name: opened(found[name]) if name in ("data", "meta") else found[name]
                for name in items
            }

        in_bucket = is_bucket(self.folder)
        pauses = objects.PAUSES_SECONDS if in_bucket else _PAUSES_SECONDS
        for pause in (*pauses, None):
            found, error = None, None
            try:
                found = read()
            # A damaged file can make the libraries raise any exception.
            except Exception as raised:
                error = raised
            full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
            failed = np.array([0 if error is None else 2 if full else 1])
            if jax.process_count() > 1:
                failed = multihost_utils.process_allgather(failed).reshape(-1)
            if not failed.any():
                return found
            process = f"process {failed.argmax()} cannot read it"
            why = in_a_line(error) if error else process
            if failed.max() == 2:
                raise MemoryError(why) from error
            if pause is not None:
                time.sleep(pause)
        raise Damaged(self.folder, f"cannot be read: {why}") from error


def _reader(folder: pathlib.Path, gigabytes: float | None = None):
    """Orbax's manager of the checkpoints in a folder, read-only."""
    return ocp.CheckpointManager(
        orbax_folder(folder),
        item_names=ITEMS,
        item_handlers=item_handlers(
            ocp.PyTreeCheckpointHandler(restore_concurrent_gb=gigabytes)
        ),
        options=ocp.CheckpointManagerOptions(create=False),
    )
