"""Whether a state fits into the devices' memory, estimated before it is compiled."""

import math
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np

from fmjax.errors import UserError
from fmjax.training.state import StatePlan

HELP = (
    "What helps: more mesh.fsdp or mesh.tensor, which divide the state among devices, "
    "or a smaller model or optimizer; for activations more train.microbatches, "
    "transformer.remat = True, or a smaller train.batch_size."
)


def check_memory(plan: StatePlan, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError where not even the state and its gradients fit.

    The estimate is a lower bound: activations, and what XLA needs besides, come on top.

    Args:
      plan: of the state, none of which is allocated yet.
      mesh: that it is planned for.
    """
    state = bytes_per_device(plan.shapes)
    # A gradient has the shape of its parameter; those that are frozen have none.
    trained = plan.freezing.partition(plan.shapes.params, 0)
    needed = state + bytes_per_device(trained)
    device = mesh.local_devices[0]
    available = (device.memory_stats() or {}).get("bytes_limit")
    where = f"a device ({device.device_kind}) has"
    if device.platform == "cpu":
        shares = len(mesh.local_devices)
        available = machine_memory() / shares
        where = f"this machine has, for each of its {shares} devices,"
    if available and needed > available:
        raise UserError(
            f"the state of this run needs {needed / 1e9:,.1f} GB on each device: "
            f"{state / 1e9:,.1f} GB of parameters, optimizer and averages, and "
            f"{(needed - state) / 1e9:,.1f} GB of gradients; {where} "
            f"{available / 1e9:,.1f} GB. {HELP}"
        )


def out_of_memory(error: Exception, plan: StatePlan) -> UserError | None:
    """What to tell of an error, if it is one of too little memory; else None."""
    text = str(error)
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in text:
        return None
    wanted = re.search(r"([\d.]+ ?(?:[KMGT]i?B|bytes))", text)
    asked = f" ({wanted[1]} were asked for)" if wanted else ""
    state = bytes_per_device(plan.shapes)
    return UserError(
        f"out of memory{asked}. The state takes {state / 1e9:,.2f} GB on each device; "
        f"gradients, activations and batches come on top. {HELP}"
    )


def bytes_per_device(shapes: Any) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def machine_memory() -> int:
    """Bytes of memory that this machine, or its container, gives."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
