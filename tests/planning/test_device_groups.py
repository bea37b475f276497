"""Which devices a collective joins, in every form that XLA prints."""

import itertools
import math

import numpy as np
import pytest

from fmjax.planning.device_groups import device_groups, varying_axes
from fmjax.planning.hlo_module import parse_module

MESH = {"a": 2, "b": 3, "c": 4}
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(MESH, n)]


def groups_of(attribute: str) -> np.ndarray:
    text = f"""HloModule m, num_partitions=24

ENTRY %main (x: f32[2]) -> f32[2] {{
  %x = f32[2]{{0}} parameter(0)
  ROOT %y = f32[2]{{0}} all-reduce(%x), channel_id=1, {attribute}, metadata={{}}
}}"""
    module = parse_module(text)
    return device_groups(module.computations["main"].root, module.partitions)


def expected_groups(axes: tuple[str, ...]) -> set[frozenset[int]]:
    """Devices that have the other axes' coordinates in common, one after another."""
    groups: dict[tuple, set[int]] = {}
    for device, place in enumerate(itertools.product(*map(range, MESH.values()))):
        rest = tuple(n for axis, n in zip(MESH, place) if axis not in axes)
        groups.setdefault(rest, set()).add(device)
    return {frozenset(group) for group in groups.values()}


def printed_iota(axes: tuple[str, ...]) -> str:
    names = list(MESH)
    order = [names.index(a) for a in names if a not in axes]
    order += [names.index(a) for a in axes]
    size = math.prod(MESH[a] for a in axes)
    order = ",".join(map(str, order))
    return f"replica_groups=[{24 // size},{size}]<=[2,3,4]T({order})"


def printed_list(axes: tuple[str, ...]) -> str:
    groups = ("{" + ",".join(map(str, sorted(g))) + "}" for g in expected_groups(axes))
    return "replica_groups={" + ",".join(groups) + "}"


def printed_mesh(axes: tuple[str, ...]) -> str:
    sizes = ",".join(f"'{a}'={n}" for a, n in MESH.items())
    return f"replica_groups=mesh[{sizes}] {{" + ",".join(f"'{a}'" for a in axes) + "}"


@pytest.mark.parametrize("axes", SUBSETS, ids="".join)
@pytest.mark.parametrize("printed", [printed_iota, printed_list, printed_mesh])
def test_groups_are_those_of_the_mesh_axes(printed, axes):
    groups = groups_of(printed(axes))
    assert {frozenset(g.tolist()) for g in groups} == expected_groups(axes)
    assert varying_axes(groups, MESH) == axes


@pytest.mark.parametrize(
    ("attribute", "first", "axes"),
    [
        ("replica_groups={}", set(range(24)), ("a", "b", "c")),
        ("replica_groups=[12,2]<=[24]", {0, 1}, ("c",)),
        # Halves of an axis: of 'c' = 2 · high + low, the low one, then the high one.
        ("replica_groups=mesh['ab'=6,'c'=4] {'c':(2)2}", {0, 1}, ("c",)),
        ("replica_groups=mesh['ab'=6,'c'=4] {'c':(1)2}", {0, 2}, ("c",)),
        ("replica_groups=mesh['abc'=24] {'abc':(1)2,'abc':(6)4}", None, ("a", "c")),
        # The mesh's first device is 0, then 4, 8, …: its minor axis varies 'b', 'a'.
        (
            "replica_groups=mesh['x'=4,'y'=6], device_ids=([6,4]T(1,0)) {'y'}",
            {0, 4, 8, 12, 16, 20},
            ("a", "b"),
        ),
        (
            "replica_groups=mesh['x'=12,'y'=2], device_ids=(0,12,1,13,2,14,3,15,4,16,5,"
            "17,6,18,7,19,8,20,9,21,10,22,11,23) {'y'}",
            {0, 12},
            ("a",),
        ),
        ("source_target_pairs={{0,4},{4,8},{8,0}}", {0, 4}, ("b",)),
    ],
)
def test_other_forms(attribute, first, axes):
    groups = groups_of(attribute)
    if first is not None:
        assert set(groups[0].tolist()) == first
    assert varying_axes(groups, MESH) == axes


def test_axes_of_size_one_are_never_listed():
    mesh = {"data": 1, "fsdp": 24, "tensor": 1}
    assert varying_axes(np.arange(24)[None], mesh) == ("fsdp",)
