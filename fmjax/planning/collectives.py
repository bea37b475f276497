"""Collectives of a compiled step: kind, bytes, how often, over which mesh axes."""

import collections as counting
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from fmjax.planning.device_groups import device_groups, varying_axes
from fmjax.planning.hlo_instructions import FREE, Computation, Instruction
from fmjax.planning.hlo_module import Module
from fmjax.sharding.collective_kinds import KINDS


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a step.

    Attributes:
      kind: one of `KINDS`.
      bytes: per execution and device: of the gathered array of an all-gather, of the
        array that an all-reduce or reduce-scatter reduces, of what a device sends in
        the others (in an all-to-all including its own part).
      runs: executions in one step.
      group_size: devices that communicate with each other.
      axes: mesh axes along which these differ.
      asynchronous: whether it runs while the devices compute.
      computation: name of the computation that executes it.
      op_name: JAX's path to the operation.
      groups: integers [groups, size], see `device_groups`.
    """

    kind: str
    bytes: int
    runs: float
    group_size: int
    axes: tuple[str, ...]
    asynchronous: bool
    computation: str
    op_name: str
    groups: np.ndarray = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same axes.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes.
      bytes: of all executions in one step, per device.
      count: executions in one step.
      asynchronous_share: part of the bytes that is communicated while the devices
        compute.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    count: float
    asynchronous_share: float


def collectives(module: Module, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """The collectives that a step executes; those that join single devices left out.

    TPUs' compiler spreads an asynchronous collective over several fusions, each of
    which repeats it; it is counted where it starts. A fusion that reduces and keeps a
    slice is a reduce-scatter.

    Args:
      module: the compiled step.
      mesh_shape: size of each axis of the mesh, in its order; partition i is the i-th
        device of `mesh.devices.flat`.

    Raises:
      ValueError: the mesh has another number of devices than the step.
    """
    if math.prod(mesh_shape.values()) != module.partitions:
        raise ValueError(
            f"The step was compiled for {module.partitions} devices; the mesh "
            f"{dict(mesh_shape)} has {math.prod(mesh_shape.values())}."
        )
    found = []
    for executed_in, within, i, asynchronous in _executed(module):
        kind = _kind(i, within)
        groups = device_groups(i, module.partitions)
        axes = varying_axes(groups, mesh_shape)
        size = groups.shape[1]
        if kind == "collective-permute":
            size = math.prod(mesh_shape[axis] for axis in axes)
        if size > 1:
            found.append(
                Collective(
                    kind=kind,
                    bytes=_bytes(i, kind, within, size),
                    runs=executed_in.runs,
                    group_size=size,
                    axes=axes,
                    asynchronous=asynchronous,
                    computation=executed_in.name,
                    op_name=i.op_name,
                    groups=groups,
                )
            )
    return found


def summarize(found: Iterable[Collective]) -> list[Traffic]:
    """Sums by kind and axes, the most bytes first."""
    total, count, hidden = (counting.Counter() for _ in range(3))
    for c in found:
        key = c.kind, c.axes
        total[key] += c.runs * c.bytes
        count[key] += c.runs
        hidden[key] += c.runs * c.bytes * c.asynchronous
    return [
        Traffic(*key, n, count[key], hidden[key] / n if n else 0.0)
        for key, n in total.most_common()
    ]


def _executed(
    module: Module,
) -> Iterator[tuple[Computation, Computation, Instruction, bool]]:
    """(computation that executes it, that holds it, collective, asynchronous)."""
    started = {
        i.attributes.get("channel_id")
        for c in module.computations.values()
        if _starts(c)
        for i in c.instructions
        if _opcode(i) in KINDS
    }
    for computation, i in module.scheduled():
        if _opcode(i) in KINDS:
            hidden = i.opcode.endswith("-start") and _overlaps(i, computation)
            yield computation, computation, i, hidden
        elif i.opcode in ("fusion", "async-start"):
            for holder, inner in module.within(i):
                if _opcode(inner) in KINDS:
                    # Without a start of its own, this is one more step of a collective.
                    if _starts(holder) or i.opcode == "async-start":
                        yield computation, holder, inner, True
                    elif inner.attributes.get("channel_id") not in started:
                        yield computation, holder, inner, False


def _opcode(i: Instruction) -> str:
    return i.opcode.removesuffix("-start")


def _starts(computation: Computation) -> bool:
    """Whether a fusion starts an asynchronous collective of a TPU."""
    targets = (i.custom_call_target for i in computation.instructions)
    return computation.fused and "AsyncCollectiveStart" in targets


def _overlaps(start: Instruction, computation: Computation) -> bool:
    """Whether anything is computed between the start and the end of a collective."""
    if start.noted("is_sync"):  # GPUs: noted by the scheduler
        return False
    order = computation.instructions
    for i in order[order.index(start) + 1 :]:
        if i.opcode.endswith("-done"):
            if start.name in i.operands:
                return False
        elif i.opcode not in FREE and not i.opcode.endswith("-start"):
            return True
    return True  # it ends in another iteration


def _kind(i: Instruction, holder: Computation) -> str:
    """The collective's kind: an all-reduce that only slices are taken of is another."""
    uses = [u.opcode for u in holder.instructions if i.name in u.operands]
    if holder.fused and _opcode(i) == "all-reduce" and {*uses} == {"dynamic-slice"}:
        return "reduce-scatter"
    return _opcode(i)


def _bytes(i: Instruction, kind: str, holder: Computation, group_size: int) -> int:
    arrays = holder.operand_arrays(i)
    if kind == "ragged-all-to-all":  # the rest are the output, offsets and sizes
        arrays = arrays[:1]
    # Results of -start instructions also hold the operands and semaphores.
    return sum(a.bytes for a in arrays) * (group_size if kind == "all-gather" else 1)
