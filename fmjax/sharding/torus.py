"""Tori of TPUs: which devices of a slice the axes of a mesh take."""

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from fmjax.sharding.chips import chip_of


def wrapped(shape: Sequence[int]) -> tuple[bool, ...]:
    """Which dimensions of a slice wrap around, so that it is a torus along them.

    In two dimensions (v5e, v6e) those of 16 chips do, the longest there are; in three
    (v4, v5p, v7x) all do if the slice is made of whole cubes of 4 × 4 × 4.
    """
    if len(shape) == 2:
        return tuple(n == 16 for n in shape)
    return (all(n % 4 == 0 for n in shape),) * len(shape)


def place_on_torus(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of one slice by mesh axis, [*sizes].

    Devices of the last axis, tensor parallelism, gather and scatter activations in
    every layer. They lie in the box of the torus whose devices have the most links to
    each other: eight TPUs of v5e as 2 × 4, where a line of eight has one link at its
    ends. An all-gather takes all dimensions of a box at once ("How to Scale Your
    Model", Austin et al. 2025, part 3). The other axes take boxes row by row; where a
    line is as good, `mesh_utils.create_device_mesh` places all axes.

    Args:
      sizes: of the mesh's axes.
      devices: all of a slice.
    """
    places = coordinates(devices)
    if places is not None:
        on_torus = np.empty(places.max(0) + 1, object)
        on_torus[tuple(places.T)] = devices
        box = _best_box(sizes[-1], on_torus.shape)
        if sum(n > 1 for n in box) > 1:
            return _in_boxes(on_torus, box).reshape(sizes)
    # `jax.make_mesh` allows axes that take a part of a dimension on v5e alone.
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def coordinates(devices: Sequence[jax.Device]) -> np.ndarray | None:
    """Where in its slice each device is, [devices, dimensions], from 0.

    None if devices share a chip or do not fill a box.
    """
    places = np.array([device.coords for device in devices])
    places -= places.min(0)
    if chip := chip_of(devices[0]):
        places = places[:, : chip.torus_dimensions]
    slices = [getattr(device, "slice_index", 0) for device in devices]
    alone = len(np.unique(np.column_stack([slices, places]), axis=0)) == len(devices)
    filled = math.prod(places.max(0) + 1) * len(set(slices)) == len(devices)
    return places if alone and filled else None


def _best_box(size: int, torus: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of the box of `size` devices with the most links; a line if that has.

    Empty if there is none.
    """

    def links(box: tuple[int, ...]) -> tuple[int, int]:
        sides = zip(box, torus, wrapped(torus))
        ways = [1 + (n == m and wraps) for n, m, wraps in sides if n > 1]
        return sum(ways), -len(ways)

    return max(_boxes(size, torus), key=links, default=())


def _boxes(size: int, torus: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Boxes of so many devices that divide the torus."""
    if not torus:
        if size == 1:
            yield ()
        return
    for side in range(1, torus[0] + 1):
        if size % side == 0 and torus[0] % side == 0:
            for rest in _boxes(size // side, torus[1:]):
                yield (side, *rest)


def _in_boxes(devices: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    """Devices [*torus] as [boxes, devices of a box], both row by row."""
    split = [part for n, m in zip(devices.shape, box) for part in (n // m, m)]
    order = (*range(0, len(split), 2), *range(1, len(split), 2))
    return devices.reshape(split).transpose(order).reshape(-1, math.prod(box))
