"""Networks: how long collectives take at least.

Devices that a fast network connects are an island: a slice of TPUs, whose network is a
torus, or a host of GPUs. A slower network connects the islands.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fmjax.planning.collectives import Collective


class NetworkChip(Protocol):
    """What a chip's description says about its networks, see `Network`."""

    platform: str
    link_bandwidth: float
    torus_dimensions: int
    chips_per_host: int
    network_bandwidth: float


@dataclasses.dataclass(frozen=True)
class Network:
    """Bounds of collectives by bandwidth alone; latencies count nothing.

    A ring brings every device (g - 1) / g of a gathered array of S bytes, so an
    all-gather or reduce-scatter takes S (g - 1) / (g B), an all-reduce twice that
    (Patarasuk and Yuan 2009). B is the bandwidth into one device. In a slice it is
    that of all its links if the group is the whole slice: two for each dimension that
    wraps around, see `wrapped`, else the one that a device at the end has. A smaller
    group is taken to lie along one dimension: two links if it is as long as one that
    wraps around, else one. All GPUs of a host reach each other at `link_bandwidth`. In
    an all-to-all, half of what half of the devices send crosses the middle.

    A group that spans s islands of m devices first exchanges, over the slow network,
    what each device has with its counterparts: (s - 1) / s of S / m bytes.

    Attributes:
      chip: of the devices.
      mesh_shape: size of each axis of the mesh, in its order.
      torus: lengths of a slice's dimensions, such as (16, 16). By default as equal as
        the number of devices allows.
      slices: number of slices along mesh axes, such as {"data": 2}. One slice by
        default.
    """

    chip: NetworkChip
    mesh_shape: Mapping[str, int]
    torus: tuple[int, ...] = ()
    slices: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def seconds(self, c: Collective) -> float:
        """The least time of one execution."""
        islands = self._islands[c.groups]
        if c.kind == "collective-permute":
            crosses = (islands != islands[:, :1]).any()
            return c.bytes / (
                self.chip.network_bandwidth if crosses else self.chip.link_bandwidth
            )
        m = max(int(np.bincount(group).max()) for group in islands)
        s = max(len(np.unique(group)) for group in islands)
        inside, outside = self._bandwidth(m), self.chip.network_bandwidth
        if c.kind.endswith("all-to-all"):
            away = c.bytes * (s - 1) / s / outside
            return away + self._exchange_seconds(c.bytes / s, m)
        once = c.bytes * (m - 1) / m / inside + c.bytes / m * (s - 1) / s / outside
        return 2 * once if c.kind == "all-reduce" else once

    @functools.cached_property
    def _islands(self) -> np.ndarray:
        """The island of each device, [devices]."""
        shape = tuple(self.mesh_shape.values())
        if self.chip.platform == "gpu":
            return np.arange(math.prod(shape)) // self.chip.chips_per_host
        island = np.zeros(shape, int)
        for n, (axis, size) in enumerate(self.mesh_shape.items()):
            count = self.slices.get(axis, 1)
            along = np.arange(size) // (size // count)
            island = island * count + np.expand_dims(
                along, [d for d in range(len(shape)) if d != n]
            )
        return island.ravel()

    @functools.cached_property
    def _torus(self) -> tuple[int, ...]:
        size = len(self._islands) // math.prod(self.slices.values())
        return self.torus or _even_torus(size, self.chip.torus_dimensions)

    def _bandwidth(self, size: int) -> float:
        """Bytes a second into one of so many devices of an island."""
        if self.chip.platform == "gpu" or size == 1:
            return self.chip.link_bandwidth
        if size == math.prod(self._torus):
            wraps = wrapped(self._torus)
            links = sum(1 + wrap for n, wrap in zip(self._torus, wraps) if n > 1)
        else:
            links = self._links_along(size)
        return links * self.chip.link_bandwidth

    def _links_along(self, size: int) -> int:
        """Links of a device within a group along one dimension."""
        rings = [n for n, wrap in zip(self._torus, wrapped(self._torus)) if wrap]
        return 2 if size in rings else 1

    def _exchange_seconds(self, sent: float, size: int) -> float:
        """Of an all-to-all in which each of `size` devices of an island sends bytes."""
        if size == 1:
            return 0.0
        if self.chip.platform == "gpu":
            return sent * (size - 1) / size / self.chip.link_bandwidth
        if size == math.prod(self._torus):
            longest = max(self._torus)
            cut = size // longest * self._links_along(longest)
        else:
            cut = self._links_along(size)
        return size / 2 * sent / 2 / (cut * self.chip.link_bandwidth)


def wrapped(shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Which dimensions of a slice wrap around, so that it is a torus along them.

    In two dimensions (v5e, v6e) those of 16 chips do, the longest there are; in three
    (v4, v5p, v7x) all do if the slice is made of whole cubes of 4 × 4 × 4.
    """
    if len(shape) == 2:
        return tuple(n == 16 for n in shape)
    return (all(n % 4 == 0 for n in shape),) * len(shape)


def _even_torus(size: int, dimensions: int) -> tuple[int, ...]:
    """The lengths of so many dimensions, as equal as can be."""
    if dimensions <= 1:
        return (size,)
    shapes = (
        (n, *_even_torus(size // n, dimensions - 1))
        for n in range(1, size + 1)
        if size % n == 0
    )
    return min(shapes, key=lambda shape: (max(shape), sum(shape)))
