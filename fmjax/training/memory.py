"""Memory estimate: whether a run can fit into the devices, before it is compiled."""

import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from fmjax.errors import UserError
from fmjax.training.state import StatePlan

HELP = (
    "What helps: more mesh.fsdp or mesh.tensor, which divide the state among devices, "
    "or a smaller model or optimizer; for activations more train.microbatches, "
    "transformer.remat = 'full', or a smaller train.batch_size."
)


def check_memory(
    plan: StatePlan,
    mesh: jax.sharding.Mesh,
    phase: int = 0,
    activations: float = 0.0,
    accumulates: bool = False,
) -> None:
    """Raises a UserError if state, gradients and activations cannot fit into memory.

    The estimate is a lower bound. Without microbatches it counts the larger of
    gradients and activations, since activations are freed while gradients are
    computed. With microbatches it counts both, since the sum of gradients is held
    throughout.

    Args:
      plan: of the state, which need not be allocated yet.
      mesh: that the state is planned for.
      phase: of freezing; parameters that are frozen in it have no gradients.
      activations: bytes of activations on each device, see
        `fmjax.training.activations`.
      accumulates: whether there is more than one microbatch.
    """
    state = bytes_per_device(plan.shapes)
    # A gradient has the shape, dtype and sharding of its parameter.
    trained = plan.freezing.partition(plan.shapes.params, phase)
    gradients = bytes_per_device(trained)
    step = gradients + activations if accumulates else max(gradients, activations)
    needed = state + step
    device = mesh.local_devices[0]
    available = (device.memory_stats() or {}).get("bytes_limit")
    where = f"a device ({device.device_kind}) has"
    if device.platform == "cpu":
        shares = len(mesh.local_devices)
        available = machine_memory() / shares
        where = f"this machine has, for each of its {shares} devices,"
    if available and needed > available:
        raise UserError(
            f"this run needs {needed / 1e9:,.1f} GB on each device at least: "
            f"{state / 1e9:,.1f} GB of parameters, optimizer and averages, and "
            f"{step / 1e9:,.1f} GB in a step ({gradients / 1e9:,.1f} GB of gradients, "
            f"{activations / 1e9:,.1f} GB of activations); {where} "
            f"{available / 1e9:,.1f} GB. {HELP}"
        )


def device_memory_peak() -> int | None:
    """Most bytes that were in use on a device of this process; None if not known."""
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in found if "peak_bytes_in_use" in s]
    return max(peaks, default=None)


def describe_memory(plan: StatePlan, activations: float = 0.0) -> str:
    """A sentence on what a device holds in training.

    Args:
      plan: of the state.
      activations: bytes of activations on each device, as for `check_memory`; 0 if
        unknown.
    """
    state = bytes_per_device(plan.shapes)
    return (
        f"The state takes {state / 1e9:,.2f} GB on each device, activations at least "
        f"{activations / 1e9:,.2f} GB; gradients and batches come on top."
    )


def bytes_per_device(shapes: Any) -> int:
    """Bytes per device of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def machine_memory() -> int:
    """Bytes of memory of this machine, or the limit of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
