"""Accelerator chips: peaks, memories and links, with their sources."""

import dataclasses
from typing import Literal

import jax

GB, GIB, TERA = 1e9, 2**30, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """The figures of one chip that a plan computes with.

    Attributes:
      name: as `fmjax plan --chip` takes it.
      platform: of JAX.
      kinds: what `device_kind` of JAX contains for it.
      peak_flops: dense bfloat16 peak in FLOP/s, without sparsity.
      memory_bytes: of high-bandwidth memory.
      memory_bandwidth: of that memory in bytes/s.
      link_bandwidth: of one link to a neighbour, one way, in bytes/s. Of a GPU, of all
        its NVLinks together.
      torus_dimensions: of the slices of a TPU; 0 for GPUs.
      chips_per_host: that a host holds.
      network_bandwidth: between hosts (GPUs) or slices (TPUs), one way, in bytes/s per
        chip.
      source: of the figures.
      clock_hz: of the matrix units, which a TPU's compiler counts in; None for GPUs.
      devices_per_chip: devices of JAX that a chip has.
    """

    name: str
    platform: Literal["tpu", "gpu"]
    kinds: tuple[str, ...]
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    torus_dimensions: int
    chips_per_host: int
    network_bandwidth: float
    source: str
    clock_hz: float | None = None
    devices_per_chip: int = 1

    def of_device(self) -> "Chip":
        """The figures of one device of JAX, where a chip has several."""
        count = self.devices_per_chip
        return dataclasses.replace(
            self,
            peak_flops=self.peak_flops / count,
            memory_bytes=self.memory_bytes / count,
            memory_bandwidth=self.memory_bandwidth / count,
            network_bandwidth=self.network_bandwidth / count,
            devices_per_chip=1,
        )


# A clock is peak_flops over what the matrix units do in a cycle: 2 × 128² FLOPs each,
# or 2 × 256² (v6e, v7x), times their number. Bandwidths of TPUs' links and networks are
# the usable ones of "How to Scale Your Model" (Austin et al. 2025), part 2.
_TPU_LINKS = "links and network: jax-ml.github.io/scaling-book/tpus"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            platform="tpu",
            kinds=("TPU v4",),
            peak_flops=275 * TERA,
            memory_bytes=32 * GIB,
            memory_bandwidth=1228 * GB,
            link_bandwidth=45 * GB,
            torus_dimensions=3,
            chips_per_host=4,
            network_bandwidth=6.25 * GB,
            clock_hz=1.05e9,
            source=f"cloud.google.com/tpu/docs/v4; {_TPU_LINKS}",
        ),
        Chip(
            name="v5e",
            platform="tpu",
            kinds=("TPU v5 lite", "TPU v5e"),
            peak_flops=197 * TERA,
            memory_bytes=16 * GIB,
            memory_bandwidth=819 * GB,
            link_bandwidth=45 * GB,
            torus_dimensions=2,
            chips_per_host=4,
            network_bandwidth=3.125 * GB,
            clock_hz=1.5e9,
            source=f"cloud.google.com/tpu/docs/v5e; {_TPU_LINKS}",
        ),
        Chip(
            name="v5p",
            platform="tpu",
            kinds=("TPU v5p", "TPU v5"),
            peak_flops=459 * TERA,
            memory_bytes=95 * GIB,
            memory_bandwidth=2765 * GB,
            link_bandwidth=90 * GB,
            torus_dimensions=3,
            chips_per_host=4,
            network_bandwidth=6.25 * GB,
            clock_hz=1.75e9,
            source=f"cloud.google.com/tpu/docs/v5p; {_TPU_LINKS}",
        ),
        Chip(
            name="v6e",
            platform="tpu",
            kinds=("TPU v6 lite", "TPU v6e"),
            peak_flops=918 * TERA,
            memory_bytes=32 * GIB,
            memory_bandwidth=1640 * GB,
            link_bandwidth=90 * GB,
            torus_dimensions=2,
            chips_per_host=4,
            network_bandwidth=12.5 * GB,
            clock_hz=1.75e9,
            source=f"cloud.google.com/tpu/docs/v6e; {_TPU_LINKS}",
        ),
        Chip(
            name="v7x",
            platform="tpu",
            kinds=("TPU7x",),
            peak_flops=2307 * TERA,
            memory_bytes=192 * GIB,
            memory_bandwidth=7380 * GB,
            link_bandwidth=100 * GB,
            torus_dimensions=3,
            chips_per_host=4,
            network_bandwidth=12.5 * GB,
            clock_hz=2.2e9,
            devices_per_chip=2,
            source="cloud.google.com/tpu/docs/tpu7x; network: as of v6e, an assumption",
        ),
        Chip(
            name="a100",
            platform="gpu",
            kinds=("A100",),
            peak_flops=312 * TERA,
            memory_bytes=80 * GB,
            memory_bandwidth=2039 * GB,
            link_bandwidth=300 * GB,
            torus_dimensions=0,
            chips_per_host=8,
            network_bandwidth=25 * GB,
            source="NVIDIA A100 SXM 80 GB data sheet; network: HDR InfiniBand a GPU",
        ),
        Chip(
            name="h100",
            platform="gpu",
            kinds=("H100",),
            peak_flops=989 * TERA,
            memory_bytes=80 * GB,
            memory_bandwidth=3350 * GB,
            link_bandwidth=450 * GB,
            torus_dimensions=0,
            chips_per_host=8,
            network_bandwidth=50 * GB,
            source="NVIDIA H100 SXM data sheet; network: NDR InfiniBand a GPU",
        ),
        Chip(
            name="h200",
            platform="gpu",
            kinds=("H200",),
            peak_flops=989 * TERA,
            memory_bytes=141 * GB,
            memory_bandwidth=4800 * GB,
            link_bandwidth=450 * GB,
            torus_dimensions=0,
            chips_per_host=8,
            network_bandwidth=50 * GB,
            source="NVIDIA H200 SXM data sheet; network: NDR InfiniBand a GPU",
        ),
        Chip(
            name="b200",
            platform="gpu",
            kinds=("B200",),
            peak_flops=2250 * TERA,
            memory_bytes=180 * GB,
            memory_bandwidth=8000 * GB,
            link_bandwidth=900 * GB,
            torus_dimensions=0,
            chips_per_host=8,
            network_bandwidth=50 * GB,
            source="NVIDIA DGX B200 data sheet; network: NDR InfiniBand a GPU",
        ),
    )
}
# Chips that nothing is planned for, but whose peak counts in a run's utilization: what
# `device_kind` contains → FLOP/s, and the source.
_OTHER_PEAKS = {"H100 PCIe": (756 * TERA, "NVIDIA H100 PCIe data sheet")}


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device of JAX; None if it is none of `CHIPS`."""
    kind = device.device_kind
    return next(
        (chip for chip in CHIPS.values() if any(name in kind for name in chip.kinds)),
        None,
    )


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak in FLOP/s of a device of JAX; None if unknown."""
    known = peak_and_source(device)
    return None if known is None else known[0]


def peak_and_source(device: jax.Device) -> tuple[float, str] | None:
    """`peak_flops`, and where it is stated; None if unknown."""
    for name, known in _OTHER_PEAKS.items():
        if name in device.device_kind:
            return known
    chip = chip_of(device)
    return None if chip is None else (chip.of_device().peak_flops, chip.source)
