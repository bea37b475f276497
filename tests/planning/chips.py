"""Chips of round numbers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    platform: str = "tpu"
    peak_flops: float = 1e6
    memory_bandwidth: float = 1e4
    clock_hz: float | None = 1e3
    link_bandwidth: float = 100.0
    torus_dimensions: int = 2
    chips_per_host: int = 4
    network_bandwidth: float = 10.0


TPU = Chip()
GPU = Chip(platform="gpu", clock_hz=None, torus_dimensions=0)
