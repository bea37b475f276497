"""Step time: how long a compiled step will take on a chip, predicted from its text."""

import collections as counting
import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fmjax.planning.attention_kernels import attention_flops, is_kernel
from fmjax.planning.collectives import collectives
from fmjax.planning.grouped_products import grouped_flops
from fmjax.planning.hlo_instructions import Instruction
from fmjax.planning.hlo_module import Module
from fmjax.planning.memory_traffic import memory_bytes
from fmjax.planning.network import Network, NetworkChip
from fmjax.planning.products import product_flops
from fmjax.sharding.collective_kinds import KINDS


class StepChip(NetworkChip, Protocol):
    """What a chip's description says that a step's time depends on.

    Attributes:
      platform: "tpu" or "gpu".
      peak_flops: FLOP/s of dense products in bfloat16.
      memory_bandwidth: of the chip's memory, bytes/s.
      clock_hz: of its matrix unit; None where it is not known.
      link_bandwidth: bytes/s of one link one way; of a GPU to all others of its host.
      torus_dimensions: 2 or 3, of TPUs; 0 for GPUs.
      chips_per_host: chips that one host holds.
      network_bandwidth: bytes/s a chip between hosts of GPUs or slices of TPUs.
    """

    peak_flops: float
    memory_bandwidth: float
    clock_hz: float | None


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Predicted time of one step, in seconds, and what it is made of.

    Attributes:
      compute_s: all that the chip computes but kernels.
      kernels_s: kernels of attention and of grouped products.
      collectives_s: collectives that the chip waits for.
      async_collectives_s: collectives that run while it computes.
      low_s: if asynchronous collectives hide behind the compute and kernels of the
        same computation (the body of a loop), as far as these last.
      high_s: if they hide behind nothing.
      products_flops: matrix FLOPs of one device's step, kernels not included.
      kernels_flops: matrix FLOPs of its kernels.
      by_cycles: whether compute is the compiler's estimate; else it is a roofline.
      uncounted_kernels: names of kernels that no time was counted for.
    """

    compute_s: float
    kernels_s: float
    collectives_s: float
    async_collectives_s: float
    low_s: float
    high_s: float
    products_flops: float
    kernels_flops: float
    by_cycles: bool
    uncounted_kernels: tuple[str, ...]


def predict(
    module: Module,
    chip: StepChip,
    mesh_shape: Mapping[str, int],
    *,
    torus: tuple[int, ...] = (),
    positions: np.ndarray | None = None,
    slices: Mapping[str, int] | None = None,
    kernel_efficiency: float = 0.5,
) -> StepTime:
    """Predicts the time of a compiled step.

    Compute is the TPU compiler's own estimate, `estimated_cycles` of each scheduled
    instruction over the clock. Copies, slices and prefetches between the chip's
    memories carry no cycles and count nothing. Where there are no cycles, as in
    programs for GPUs and CPUs, each scheduled instruction takes the longer of its
    products' FLOPs at the bfloat16 peak and the bytes that it reads and writes at the
    memory's bandwidth: a roofline (Williams et al. 2009), a bound that real programs do
    not reach.

    Attention kernels are counted by the FLOPs of the blocks they visit, grouped
    products by those of the rows that they are expected to have, at a share of the
    peak, which is an assumption. Collectives take what `Network` bounds them by.

    Args:
      module: the compiled step.
      chip: that it will run on.
      mesh_shape: size of each axis of the mesh, in its order.
      torus: see `Network`.
      positions: see `Network`.
      slices: see `Network`.
      kernel_efficiency: share of the peak that these kernels reach.
    """
    by_cycles = chip.clock_hz is not None and any(
        i.estimated_cycles is not None for _, i in module.scheduled()
    )
    spaces = chip.platform == "tpu"
    compute, kernels, hidden = (counting.Counter() for _ in range(3))
    products = kernels_flops = 0.0
    uncounted = []
    for computation, i in module.scheduled():
        flops = product_flops(module, computation, i)
        products += computation.runs * flops
        if _kind(i) in KINDS:
            continue
        inside = attention_flops(computation, i)
        if inside is None:
            inside = grouped_flops(computation, i)
        if inside is not None:
            kernels_flops += computation.runs * inside
            seconds = inside / (kernel_efficiency * chip.peak_flops)
            kernels[computation.name] += computation.runs * seconds
            continue
        if by_cycles:
            seconds = (i.estimated_cycles or 0) / chip.clock_hz
        else:
            seconds = max(
                flops / chip.peak_flops,
                memory_bytes(module, computation, i, spaces) / chip.memory_bandwidth,
            )
        if is_kernel(i) and not i.estimated_cycles:
            uncounted.append(i.name)
        compute[computation.name] += computation.runs * seconds

    network = Network(chip, mesh_shape, torus, positions, slices or {})
    waited = 0.0
    for c in collectives(module, mesh_shape):
        seconds = c.runs * network.seconds(c)
        if c.asynchronous:
            hidden[c.computation] += seconds
        else:
            waited += seconds

    busy = float(compute.total() + kernels.total() + waited)
    beyond = (max(0.0, s - compute[n] - kernels[n]) for n, s in hidden.items())
    return StepTime(
        compute_s=float(compute.total()),
        kernels_s=float(kernels.total()),
        collectives_s=waited,
        async_collectives_s=float(hidden.total()),
        low_s=busy + sum(beyond),
        high_s=busy + hidden.total(),
        products_flops=products,
        kernels_flops=kernels_flops,
        by_cycles=by_cycles,
        uncounted_kernels=tuple(uncounted),
    )


def _kind(i: Instruction) -> str:
    return i.opcode.removesuffix("-start").removesuffix("-done")
