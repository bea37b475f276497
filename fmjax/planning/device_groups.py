"""Device groups: which devices a collective joins."""

import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

from fmjax.planning.hlo_instructions import Instruction


def device_groups(collective: Instruction, partitions: int) -> np.ndarray:
    """Integers [groups, size]: partitions that a collective joins with each other.

    XLA prints lists of groups, `[32,8]<=[8,32]T(1,0)` (an iota of shape [8, 32],
    transposed and reshaped to 32 groups of 8), or axes of a mesh. The groups of a
    collective-permute are its pairs of source and target.

    Args:
      collective: the instruction.
      partitions: number of devices that the program runs on.
    """
    pairs = collective.attributes.get("source_target_pairs")
    printed = pairs if pairs is not None else collective.replica_groups
    if printed.startswith("mesh"):
        return _of_mesh(printed)
    if printed.startswith("["):
        shape, _, source = printed.partition("<=")
        return _iota(source).reshape(_integers(shape))
    groups = [_integers(group) for group in re.findall(r"\{([\d,\s]+)\}", printed)]
    return np.array(groups) if groups else np.arange(partitions)[None]


def varying_axes(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ, in the mesh's order.

    Args:
      groups: integers [groups, size]; partition i is the i-th device of the mesh.
      mesh_shape: size of each axis of the mesh, in its order.
    """
    coordinates = np.unravel_index(groups, tuple(mesh_shape.values()))
    return tuple(
        axis
        for axis, along in zip(mesh_shape, coordinates)
        if (along != along[:, :1]).any()
    )


def _integers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _iota(text: str) -> np.ndarray:
    """Printed as `[8,32]T(1,0)`: 0, 1, … in this shape, transposed, then flattened."""
    shape, _, order = text.partition("T")
    sizes = _integers(shape)
    array = np.arange(math.prod(sizes)).reshape(sizes)
    return (array.transpose(_integers(order)) if order else array).ravel()


def _of_mesh(text: str) -> np.ndarray:
    """Groups printed as `mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'b':(2)4}`.

    `'b':(2)4` is a part of the axis: as if 'b' were three axes of sizes 2, 4 and 1, the
    one in the middle.
    """
    sizes = {name: int(n) for name, n in re.findall(r"'?([\w.]+)'?=(\d+)", text)}
    joined = text[text.rindex("{") :]
    references = re.findall(r"'?([A-Za-z_][\w.]*)'?(?::\((\d+)\)(\d+))?", joined)
    order = re.search(r"device_ids=\((.*)\) \{", text)
    if order is None:
        ids = np.arange(math.prod(sizes.values()))
    elif order[1].startswith("["):
        ids = _iota(order[1])
    else:
        ids = np.array(_integers(order[1]))

    shape: list[int] = []
    places: dict[tuple[str, int], int] = {}
    for name, size in sizes.items():
        parts = [(int(b), int(n)) for a, b, n in references if a == name and b]
        cuts = sorted({1, size, *(c for b, n in parts for c in (b, b * n))})
        for low, high in itertools.pairwise(cuts):
            places[name, low] = len(shape)
            shape.append(high // low)
    inside = [
        place
        for name, before, n in references
        for (axis, low), place in places.items()
        if axis == name and (not before or int(before) <= low < int(before) * int(n))
    ]
    outside = [n for n in range(len(shape)) if n not in inside]
    grouped = math.prod(shape[n] for n in inside)
    return ids.reshape(shape).transpose(outside + inside).reshape(-1, grouped)
