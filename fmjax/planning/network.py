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
from fmjax.sharding.torus import wrapped


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
    (Patarasuk and Yuan 2009). B is the bandwidth into one device. In a slice of TPUs
    it is that of the links along every dimension in which the devices of a group
    differ: two where they are a whole dimension that wraps around, see `wrapped`, else
    the one that a device at the end has. Devices that lie s apart share the links with
    those of s - 1 other groups. Devices that fill no box of the torus are counted one
    link. All GPUs of a host reach each other at `link_bandwidth`. In an all-to-all,
    half of what half of the devices send crosses the middle of each dimension.

    A group that spans s islands of m devices first exchanges, over the slow network,
    what each device has with its counterparts: (s - 1) / s of S / m bytes.

    Attributes:
      chip: of the devices.
      mesh_shape: size of each axis of the mesh, in its order.
      torus: lengths of a slice's dimensions, such as (16, 16). By default as equal as
        the number of devices allows.
      positions: integers [devices, dimensions], where in their slice the devices of the
        mesh are. By default the devices of each slice fill it row by row.
      slices: number of slices along mesh axes, such as {"data": 2}. One slice by
        default.
    """

    chip: NetworkChip
    mesh_shape: Mapping[str, int]
    torus: tuple[int, ...] = ()
    positions: np.ndarray | None = None
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
        near = c.groups[0][islands[0] == islands[0, 0]]
        outside = self.chip.network_bandwidth
        if c.kind.endswith("all-to-all"):
            away = c.bytes * (s - 1) / s / outside
            return away + self._exchange_seconds(c.bytes / s, near)
        inside = c.bytes * (m - 1) / m / self._bandwidth(near)
        once = inside + c.bytes / m * (s - 1) / s / outside
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

    @functools.cached_property
    def _positions(self) -> np.ndarray:
        """Where in its slice each device is, [devices, dimensions]."""
        if self.positions is not None:
            return self.positions
        islands = self._islands
        within = np.zeros(len(islands), int)
        for island in np.unique(islands):
            members = islands == island
            within[members] = np.arange(members.sum())
        return np.stack(np.unravel_index(within, self._torus), axis=-1)

    def _bandwidth(self, group: np.ndarray) -> float:
        """Bytes a second into one of these devices of an island."""
        if self.chip.platform == "gpu" or len(group) == 1:
            return self.chip.link_bandwidth
        links = sum(links for _, links in self._box(group)) or 1
        return links * self.chip.link_bandwidth

    def _box(self, group: np.ndarray) -> list[tuple[int, float]]:
        """Of each dimension in which devices of a slice differ: their number and links.

        Links are those of a device along the dimension that its group has for itself.
        Empty for devices that fill no box.
        """
        places = np.unique(self._positions[group], axis=0)
        found = []
        for along, length, wraps in zip(places.T, self._torus, wrapped(self._torus)):
            values = np.unique(along)
            if len(values) == 1:
                continue
            stride = int(values[1] - values[0])
            if (np.diff(values) != stride).any():
                return []
            ways = 2 if wraps and stride * len(values) == length else 1
            found.append((len(values), ways / stride))
        return found if math.prod(n for n, _ in found) == len(places) else []

    def _exchange_seconds(self, sent: float, group: np.ndarray) -> float:
        """Of an all-to-all in which each of these devices of an island sends bytes."""
        size = len(group)
        if size == 1:
            return 0.0
        if self.chip.platform == "gpu":
            return sent * (size - 1) / size / self.chip.link_bandwidth
        # Every line of devices along a dimension crosses its middle.
        box = self._box(group) or [(size, 1.0)]
        cut = min(size / n * links for n, links in box)
        return size / 2 * sent / 2 / (cut * self.chip.link_bandwidth)


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
