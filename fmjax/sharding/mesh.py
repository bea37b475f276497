"""Device mesh: its axes, the sharding of batches, and global arrays."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError, require
from fmjax.sharding.rules import DEFAULT_RULES, LogicalRules
from fmjax.sharding.torus import place_on_torus

# `make_mesh` assigns neighbouring devices, which communicate fastest, to the last axes:
# tensor parallelism communicates most, data parallelism least.
AXES = ("data", "fsdp", "stage", "expert", "context", "tensor")
_VIRTUAL = " On CPUs `fmjax train … --devices N` makes N virtual devices."


@configurable("mesh")
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, for the remaining devices.

    Attributes:
      data: data parallelism: replicas of the model, each with its part of the batch.
      fsdp: fully sharded data parallelism: shards of the batch, parameters and
        optimizer state.
      stage: pipeline parallelism: groups of layers, see
        `fmjax.models.layers.pipeline`; outside of stacks, shards of the batch.
      expert: expert parallelism: shards of the batch and of the experts of a mixture.
      context: context parallelism: shards of the length of sequences, see
        `transformer.context_attention`, and like fsdp of parameters and optimizer
        state.
      tensor: tensor parallelism: shards of heads, feed-forward layers and vocabulary.
      across_slices: the axis, "data" or "stage", that crosses from one slice of TPUs to
        the next, over a slower network; the others stay within slices. Its size must be
        a multiple of the slices.
      zero1: shards the state of the optimizer and averaged parameters over data too;
        the parameters stay whole on each of data's replicas (ZeRO-1, Rajbhandari et
        al. 2020).
      rules: pairs of a logical axis and a mesh axis, several, or None, which take
        precedence over `fmjax.sharding.rules.DEFAULT_RULES`.
    """

    data: int = runtime_field(-1)
    fsdp: int = runtime_field(1)
    stage: int = runtime_field(1)
    expert: int = runtime_field(1)
    context: int = runtime_field(1)
    tensor: int = runtime_field(1)
    across_slices: Literal["data", "stage"] = runtime_field("data")
    zero1: bool = runtime_field(False)
    rules: LogicalRules = runtime_field(())

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            expected = "a positive size, or -1 for all remaining devices"
            require(self, axis, size > 0 or size == -1, expected)
        if sum(getattr(self, axis) == -1 for axis in AXES) > 1:
            raise UserError("mesh: only one axis may be -1.")
        for name, target in self.rules:
            for axis in (target,) if isinstance(target, str) else target or ():
                if axis not in AXES:
                    raise UserError(
                        f"mesh.rules places {name!r} on {axis!r}: expected one of "
                        f"{', '.join(AXES)}."
                    )

    @property
    def all_rules(self) -> LogicalRules:
        """The rules of this mesh: its own first, then the defaults."""
        own = {name for name, _ in self.rules}
        return self.rules + tuple(r for r in DEFAULT_RULES if r[0] not in own)

    @property
    def optimizer_rules(self) -> LogicalRules:
        """The rules of the optimizer's state and of averaged parameters."""

        def target(name, axes):
            if name != "embed" or not self.zero1:
                return axes
            axes = (axes,) if isinstance(axes, str) else axes or ()
            return (*axes, "data")

        return tuple((name, target(name, axes)) for name, axes in self.all_rules)

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The size of every axis on `num_devices` devices, in the order of `AXES`.

        Raises:
          UserError: the sizes do not fit the number of devices.
        """
        sizes = [getattr(self, axis) for axis in AXES]
        known = math.prod(s for s in sizes if s != -1)
        if -1 in sizes:
            if num_devices % known:
                raise UserError(
                    f"mesh: {num_devices} devices cannot be divided into "
                    f"{self._format()}.{_VIRTUAL}"
                )
            sizes[sizes.index(-1)] = num_devices // known
        elif known != num_devices:
            raise UserError(
                f"mesh: {self._format()} takes {known} devices, found {num_devices}. "
                f"Set one axis to -1 to take all.{_VIRTUAL}"
            )
        return tuple(sizes)

    def build(self, devices=None) -> jax.sharding.Mesh:
        """The mesh over `devices`, all of the run's devices by default."""
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        # Linen's constraints need Auto: under Explicit, make_mesh's default, they fail.
        types = (AxisType.Auto,) * len(AXES)
        if devices[0].platform != "tpu":
            return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
        return jax.sharding.Mesh(self._on_torus(devices), AXES, axis_types=types)

    def _on_torus(self, devices: Sequence[jax.Device]) -> np.ndarray:
        """TPUs by mesh axis, so that those of an axis are neighbours."""
        sizes = list(self.sizes(len(devices)))
        slices = count_slices(devices)
        if slices == 1:
            return place_on_torus(sizes, devices)
        axis = AXES.index(self.across_slices)
        if sizes[axis] % slices:
            raise UserError(
                f"mesh.{self.across_slices} = {sizes[axis]}: expected a multiple of "
                f"the {slices} slices of TPUs, which it crosses (mesh.across_slices)."
            )
        sizes[axis] //= slices
        by_slice = itertools.groupby(
            sorted(devices, key=lambda device: device.slice_index),
            key=lambda device: device.slice_index,
        )
        placed = [place_on_torus(sizes, list(members)) for _, members in by_slice]
        return np.concatenate(placed, axis)

    def _format(self) -> str:
        return " × ".join(
            f"{a}={getattr(self, a)}" for a in AXES if getattr(self, a) != 1
        )


def count_slices(devices: Sequence[jax.Device]) -> int:
    """The number of slices that TPUs are of; 1 for other devices."""
    # Processes on CPUs have numbers of slices too, and no network between slices.
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


@contextlib.contextmanager
def on_mesh(mesh: jax.sharding.Mesh, rules: LogicalRules):
    """Context manager: logical constraints of models refer to `mesh` and `rules`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def batch_axes(rules: LogicalRules) -> tuple[str, ...]:
    """The mesh axes that shard the batch."""
    target = dict(rules)["batch"]
    return (target,) if isinstance(target, str) else target or ()


def batch_shards(mesh: jax.sharding.Mesh, rules: LogicalRules) -> int:
    """The number of shards of the batch axis."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(rules))


def batch_sharding(mesh: jax.sharding.Mesh, rules: LogicalRules) -> NamedSharding:
    """Sharding of a batch: rows over the batch's mesh axes, other axes replicated."""
    return NamedSharding(mesh, PartitionSpec(dict(rules)["batch"]))


def local_rows(sharding: NamedSharding, batch_size: int) -> range:
    """The contiguous rows of a global batch that this process's devices hold.

    Raises:
      UserError: if the rows of this process are not contiguous on this mesh.
    """
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    pieces = sorted({index[0].indices(batch_size)[:2] for index in indices})
    rows = range(pieces[0][0], pieces[-1][1])
    if sum(stop - start for start, stop in pieces) != len(rows):
        raise UserError(
            f"mesh: process {jax.process_index()} would hold scattered rows {pieces} "
            "of the batch. Give the axes that cross processes to data or fsdp."
        )
    return rows


def global_batch(
    batch: dict[str, np.ndarray], sharding: NamedSharding, batch_size: int
) -> dict[str, jax.Array]:
    """Makes global arrays of `batch_size` rows from the rows of each process.

    Args:
      batch: this process's rows, see `local_rows`.
      sharding: of the global batch.
      batch_size: rows of the global batch.
    """
    return {
        name: jax.make_array_from_process_local_data(
            sharding, rows, (batch_size, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }
