"""Import of peft's adapters: a run directory of adapters on top of a run."""

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fmjax.config.render import render
from fmjax.errors import UserError
from fmjax.interop.peft import virtual_tokens
from fmjax.interop.peft.adapter_config import (
    FILE,
    VIRTUAL_TOKENS,
    AdapterConfig,
    check_ignored,
)
from fmjax.interop.peft.adapter_tensors import PREFIX, SHORT_PREFIX, AdapterTensors
from fmjax.interop.peft.adapter_tensors import VIRTUAL_TOKENS as TENSOR
from fmjax.interop.peft.added_head import with_added_head
from fmjax.interop.peft.base_model import WEIGHT, BaseModel
from fmjax.interop.peft.pieces import Pieces, read_pieces
from fmjax.models.layers.adapters import IA3 as IA3_SUFFIX
from fmjax.models.layers.adapters import LORA as LORA_SUFFIX
from fmjax.models.untie import HEAD, TABLE, head_of, is_tied, untied
from fmjax.optim.axes import sides
from fmjax.optim.peft.added import Method
from fmjax.optim.peft.ia3 import IA3
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.peft import Peft
from fmjax.optim.peft.reads import check_model_reads
from fmjax.run import directory as run_dirs
from fmjax.run.fork import copy_files
from fmjax.storage.new_folder import new_folder
from fmjax.storage.objects import local_copy
from fmjax.storage.paths import as_path, given_path, is_bucket
from fmjax.training.checkpoint import checkpoints
from fmjax.training.checkpoint.bucket_steps import COMMITTED
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.checkpoint.saved_state import FOLDER, SavedState
from fmjax.training.experiment import Experiment
from fmjax.training.init_from import InitFrom
from fmjax.training.state import abstract_variables


def import_adapter(
    adapter_dir: str | Path,
    run_dir: str | Path,
    base: str | Path,
    *,
    step: int | None = None,
    ignore: Collection[str] = (),
    trust: bool = False,
) -> list[str]:
    """Writes a run directory with an adapter of peft.

    The adapter is of LoRA, DoRA, IA3, LayerNorm tuning, prefix tuning, prompt tuning or
    P-tuning.

    It names the base's checkpoint and holds what the adapter adds. Adapters of several
    ranks in one array of scanned layers are padded with zeros to the largest. Where an
    adapter changes only one of a table and a head that are tied, the head gets weights
    of its own. A head of classes that the adapter has and the base lacks is added.

    Args:
      adapter_dir: a folder with adapter_config.json and adapter_model.safetensors or
        adapter_model.bin.
      run_dir: the run directory to write; it must be new.
      base: the run directory of the model that the adapter was trained on, such as
        `fmjax import` makes.
      step: of the base's checkpoint; None for the newest.
      ignore: options of adapter_config.json to ignore, of which fmjax does not know
        that they have no effect.
      trust: whether the base's config may import Python modules.

    Returns:
      Lines for the user.

    Raises:
      UserError: an option or a tensor is not supported, or the adapter is of another
        model. Nothing is written then.
    """
    place, target = given_path(adapter_dir, "adapter_dir"), as_path(run_dir, "run_dir")
    base_dir = as_path(base, "--base")
    if not place.is_dir():
        raise UserError(f"{place}: no such directory; expected an adapter of peft.")
    experiment = run_dirs.stored_experiment(base_dir, trust)
    saved = SavedState(base_dir, step)
    if saved.references or experiment.peft is not None:
        raise UserError(
            f"--base {base_dir} is itself a run of adapters; expected one of whole "
            "weights, as `fmjax merge` makes of it."
        )
    with local_copy(place) as local, new_folder(target) as folder:
        config = AdapterConfig.read(local, ignore)
        check_ignored(local, ignore)
        virtual = config.kind in VIRTUAL_TOKENS
        tensors = AdapterTensors(local, SHORT_PREFIX if virtual else PREFIX)
        made = _Adapted(experiment, saved, str(base_dir), config, tensors)
        run_dirs.write(folder, render(made.experiment))
        copy_files(base_dir, folder, run_dirs.KEPT)
        host = jax.local_devices(backend="cpu")[0]
        own = traverse_util.unflatten_dict(made.own, sep="/")
        checkpoints.save_model(
            folder, jax.device_put(own, host), references=[made.reference]
        )
        if is_bucket(target):  # A checkpoint counts there once it is marked.
            (folder / FOLDER / "0" / COMMITTED).write_text("imported")
    notes = [*made.notes, made.plan.describe()]
    # Another base of the same shapes cannot be told from the right one.
    if config.base:
        notes.append(f"trained on {config.base}, as {FILE} says; --base is {base_dir}")
    return notes


class _Adapted:
    """A base with an adapter.

    Attributes:
      experiment: of the run of adapters.
      plan: of its parameters.
      own: parameters that its checkpoint holds, by path.
      reference: the others.
      notes: for the user.
    """

    def __init__(
        self,
        experiment: Experiment,
        saved: SavedState,
        named: str,
        config: AdapterConfig,
        tensors: AdapterTensors,
    ):
        self._saved, self._config, self._named = saved, config, named
        imported = experiment.imported
        preferred = imported.model_type if imported else None
        base = BaseModel.of(experiment.objective, preferred)
        self.notes = self._drop_unchanged(tensors, base)
        head = with_added_head(base, tensors)
        if head is not None:
            experiment = _with_model(experiment, head)
            base = BaseModel.of(experiment.objective, preferred)
        self._head = None
        if self._needs_own_head(tensors, base):
            self.notes.append(
                "the head, which is tied to the table in the base, has weights of its "
                "own: the adapter changes only one of them"
            )
            self._head = head_of(self._read_base(TABLE, base))
            experiment = _with_model(experiment, untied(experiment.objective.model))
            base = BaseModel.of(experiment.objective, preferred)
        rows = self._read_virtual_tokens(tensors, base)
        pieces = read_pieces(tensors, config, base, named)
        axes, shapes = abstract_variables(experiment.objective)
        methods = (*self._low_rank_methods(pieces), *_factor_methods(pieces))
        if rows is not None:
            methods = (virtual_tokens.method_of(config.kind, config.length),)
        whole = set(pieces.whole) | ({HEAD} if self._head is not None else set())
        flat = traverse_util.flatten_dict(shapes["params"], sep="/")
        held = {
            path: saved.place(path)[1] for path in flat if path in saved.param_shapes
        }
        dtypes = [held[path] for path in held if path not in whole]
        peft = Peft(
            methods=methods,
            trained=tuple(sorted(whole)),
            base_dtype=max(dtypes, key=dtypes.count),
        )
        self.plan = peft.plan(axes["params"], shapes["params"])
        if lacking := sorted({*self.plan.frozen} - {*saved.param_shapes}):
            raise UserError(
                f"{named} has no {lacking[0]}, which the adapter's {base.class_name} "
                "reads and the adapter does not have. Expected a base of this class."
            )
        check_model_reads(self.plan, experiment.objective.model)
        if rows is None:
            added = self._added(pieces, base)
        else:
            added = virtual_tokens.from_file(config.kind, config.length, base, rows)
        self.own = added | self._whole(pieces, base, whole)
        arrays = {path: (path, dtype) for path, dtype in self.plan.frozen.items()}
        self.reference = Reference(
            named,
            saved.step,
            saved.digest_of([*arrays]),
            arrays,
            sum(math.prod(saved.param_shapes[path]) for path in arrays),
        )
        self.experiment = dataclasses.replace(
            experiment,
            # The step is that of the checkpoint's reference.
            init_from=(InitFrom(run=named),),
            freeze=(),
            peft=peft,
        )

    def _drop_unchanged(self, tensors: AdapterTensors, base: BaseModel) -> list[str]:
        """Drops weights of the base that were saved beside adapters of tables."""
        in_base, dropped = base.tensors(self._saved), []
        for name, stored in [*tensors.whole.items()]:
            if not tensors.is_of_base(stored) or not name.endswith(WEIGHT):
                continue
            known = base.find(name)
            if known is None and base.copy_of(name):
                known = base.places_of(TABLE)[0]
            if known is None:
                continue
            value = in_base[known].make()
            if tensors.shape(stored) != value.shape:
                continue  # Refused where it is read.
            # It may have been rounded to bfloat16.
            found = tensors.read(stored, value.shape, self._named)
            if not np.allclose(found, value, rtol=1e-2, atol=1e-6):
                raise UserError(
                    f"{tensors.folder}: {stored}, a weight of the base, differs from "
                    f"that of {self._named}. Expected an adapter of this base."
                )
            del tensors.whole[name]
            dropped.append(name)
        return [f"{name} is that of the base" for name in dropped]

    def _needs_own_head(self, tensors: AdapterTensors, base: BaseModel) -> bool:
        """Whether an adapter changes one of a table and its tied head alone."""
        tables = base.places_of(TABLE)
        headed = any(HEAD in row.paths for row in base.architecture.rows)
        if not is_tied(base.objective.model) or not headed or not tables:
            return False
        if any(base.copy_of(module + WEIGHT) for module in tensors.low_rank):
            return True
        table = [n for n in tensors.whole if base.find(n) == tables[0]]
        heads = [n for n in tensors.whole if base.copy_of(n)]
        if not table or not heads:
            return bool(table or heads)
        (one, *_), (other, *_) = table, heads
        names = tensors.whole[one], tensors.whole[other]
        shape = tensors.shape(names[0])
        first, second = (tensors.read(name, shape, "") for name in names)
        if np.array_equal(first, second):
            del tensors.whole[other]
            return False
        return True

    def _read_virtual_tokens(
        self, tensors: AdapterTensors, base: BaseModel
    ) -> np.ndarray | None:
        """The tensor of virtual tokens; None of an adapter of another kind."""
        config = self._config
        if (config.kind in VIRTUAL_TOKENS) != tensors.has_virtual_tokens:
            raise UserError(
                f"{config.source} has peft_type = {config.kind!r}, but the adapter has "
                f"{'a' if tensors.has_virtual_tokens else 'no'} tensor {TENSOR!r}. "
                "Expected files of one adapter."
            )
        if config.kind not in VIRTUAL_TOKENS:
            return None
        if others := [*tensors.low_rank, *tensors.factors, *tensors.tuned]:
            raise UserError(
                f"{tensors.folder} has an adapter of {others[0]} beside {TENSOR!r}; "
                "expected one kind of adapter."
            )
        virtual_tokens.check_base(config.kind, base, config.source)
        self.notes += virtual_tokens.notes(config.kind, base)
        shape = virtual_tokens.shape_of(config.kind, config.length, config.copies, base)
        return tensors.read(TENSOR, shape, self._named)

    def _read_base(self, path: str, base: BaseModel) -> np.ndarray:
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        wanted = {path: base.shapes[path].update(sharding=host)}
        return np.asarray(self._saved.read_params(wanted)[path])

    def _low_rank_methods(self, pieces: Pieces) -> list[Method]:
        """One for all arrays with the same rank and scale."""
        config = self._config
        paths: dict[tuple[int, float], list[str]] = {}
        for path, found in pieces.low_rank.items():
            first = max(found.values(), key=lambda piece: piece.product.rank)
            paths.setdefault((first.product.rank, first.alpha), []).append(path)
        return [
            LoRA(
                paths=tuple(sorted(own)),
                rank=rank,
                alpha=alpha,
                rank_stabilized=config.rank_stabilized,
                dora=config.dora,
                dropout=config.dropout,
            )
            for (rank, alpha), own in paths.items()
        ]

    def _added(self, pieces: Pieces, base: BaseModel) -> dict[str, np.ndarray]:
        """The values of the parameters that are added."""
        found = {}
        for path, added in self.plan.added.items():
            owner, _, name = path.rpartition("/")
            suffix = LORA_SUFFIX if owner.endswith(LORA_SUFFIX) else IA3_SUFFIX
            weight = owner.removesuffix(suffix)
            if suffix == IA3_SUFFIX:
                values = (pieces.inputs if name == "in" else pieces.outputs)[weight]
                array = np.ones(added.shape, np.float32)
            else:
                values = {
                    index: {
                        "a": piece.product.a,
                        "b": piece.product.b,
                        "scale": np.float32(piece.product.scale),
                        "dropout": np.float32(self._config.dropout),
                        "magnitude": piece.magnitude,
                    }[name]
                    for index, piece in pieces.low_rank[weight].items()
                }
                # What a layer without an adapter has; a and b are zeros there.
                array = np.zeros(added.shape, np.float32)
                if name in ("scale", "dropout"):
                    array[...] = next(iter(values.values()))
                if name == "magnitude":
                    array = self._norms(weight, base)
            for index, value in values.items():
                _put(array, index, value)
            found[path] = array
        return found

    def _norms(self, weight: str, base: BaseModel) -> np.ndarray:
        """|W| over the inputs, for each output."""
        names, batch = base.axes[weight], len(base.batch(weight))
        inputs = tuple(range(batch, batch + len(sides(names)[0])))
        values = self._head if weight == HEAD and self._head is not None else None
        if values is None:
            values = self._read_base(weight, base)
        return np.sqrt((values.astype(np.float32) ** 2).sum(inputs))

    def _whole(
        self, pieces: Pieces, base: BaseModel, whole: set[str]
    ) -> dict[str, np.ndarray]:
        """The values of the model's parameters that are not the base's."""
        found = {}
        for path in whole:
            if path == HEAD and self._head is not None:
                old = self._head
            elif path in self._saved.param_shapes:
                old = self._read_base(path, base)
            else:  # Of a head that the adapter brings along, all of it.
                old = np.zeros(base.shapes[path].shape)
            found[path] = np.array(old, np.float32)
            for index, value in pieces.whole.get(path, {}).items():
                _put(found[path], index, value)
        return found


def _with_model(experiment: Experiment, model: nn.Module) -> Experiment:
    objective = dataclasses.replace(experiment.objective, model=model)
    return dataclasses.replace(experiment, objective=objective)


def _factor_methods(pieces: Pieces) -> list[Method]:
    if not pieces.inputs and not pieces.outputs:
        return []
    return [
        IA3(outputs=tuple(sorted(pieces.outputs)), inputs=tuple(sorted(pieces.inputs)))
    ]


def _put(array: np.ndarray, index: tuple[int, ...], value: np.ndarray) -> None:
    """Sets a part of an array; the rest of its last axes is padding."""
    array[(*index, *(slice(n) for n in np.shape(value)))] = value
