"""Slices and hosts that a plan is for, and what is refused."""

import math

import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.planning import topology
from fmjax.planning.topology import make_topology
from fmjax.sharding.chips import CHIPS
from fmjax.sharding.mesh import MeshConfig
from fmjax.sharding.slices import find_chip, slice_shape
from fmjax.sharding.torus import wrapped


def test_an_unknown_chip_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"--chip v9: expected one of v4, v5e"):
        find_chip("v9")


@pytest.mark.parametrize(
    ("chip", "chips", "shape"),
    [
        ("v5e", 4, (2, 2)),
        ("v5e", 8, (2, 4)),
        ("v6e", 256, (16, 16)),
        ("v5p", 4, (1, 2, 2)),
        ("v5p", 256, (4, 8, 8)),
        ("v4", 4096, (16, 16, 16)),
        ("h100", 8, ()),
    ],
)
def test_slices_are_as_near_to_squares_and_cubes_as_can_be(chip, chips, shape):
    assert slice_shape(CHIPS[chip], chips) == shape
    assert not shape or math.prod(shape) == chips


@pytest.mark.parametrize(
    ("chip", "chips", "says"),
    [
        ("v5e", 24, "4, 8, 16, … or 256"),
        ("v5e", 512, "4, 8, 16, … or 256"),
        ("v5p", 2, "4, 8, 16, … or 4096"),
        ("h100", 12, "whole hosts of 8 h100"),
        ("h100", 0, "whole hosts of 8 h100"),
    ],
)
def test_other_counts_are_refused(chip, chips, says):
    with pytest.raises(UserError, match=f"--chips {chips}: .*{says}"):
        slice_shape(CHIPS[chip], chips)


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e", "v7x"])
def test_libtpu_knows_every_tpu(chip):
    found = make_topology(CHIPS[chip], 8)
    assert found.compiler == "tpu"
    assert len(found.devices) == 8 * CHIPS[chip].devices_per_chip
    kinds = {device.device_kind for device in found.devices}
    assert all(any(name in kind for name in CHIPS[chip].kinds) for kind in kinds)


def test_slices_wrap_around_where_those_of_cloud_tpu_do():
    assert wrapped((16, 16)) == (True, True)
    assert wrapped((8, 16)) == (False, True)
    assert wrapped((2, 4)) == (False, False)
    assert wrapped((4, 8, 8)) == (True, True, True)
    assert wrapped((2, 4, 4)) == (False, False, False)


def test_slices_are_joined_along_one_axis():
    found = make_topology(CHIPS["v5e"], 16, slices=2)
    assert (found.shape, found.slices, len(found.devices)) == ((2, 4), 2, 16)
    for across, sizes in (
        ("data", {"data": 4, "fsdp": 4}),
        ("stage", {"data": 1, "stage": 2, "tensor": 8}),
    ):
        mesh = MeshConfig(across_slices=across, **sizes).build(found.devices)
        assert {n: mesh.shape[n] for n in sizes} == sizes
        slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
        # Along every other axis all devices are of one slice.
        at = mesh.axis_names.index(across)
        slices = np.moveaxis(slices, at, 0).reshape(sizes[across], -1)
        assert (slices == slices[:, :1]).all()
        assert sorted(slices[:, 0]) == [*slices[:, 0]]
        assert {*slices[:, 0]} == {0, 1}
    with pytest.raises(UserError, match=r"mesh.data = 1: .* 2 slices"):
        MeshConfig(data=1, fsdp=16).build(found.devices)


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_a_mesh_axis_may_be_a_part_of_a_dimension(chip):
    devices = make_topology(CHIPS[chip], 64).devices
    mesh = MeshConfig(data=1, fsdp=32, tensor=2).build(devices)
    pairs = mesh.devices.reshape(-1, 2)
    for a, b in pairs:
        assert sum(abs(np.subtract(a.coords, b.coords))) == 1


@pytest.mark.parametrize(
    ("chip", "chips", "tensor", "box"),
    [
        ("v5e", 256, 4, (2, 2)),
        ("v5e", 256, 8, (2, 4)),
        # A dimension that wraps around has two links, as a box of 4 × 4.
        ("v5e", 256, 16, (16, 1)),
        ("v5p", 256, 4, (4, 1, 1)),
        ("v5p", 256, 8, (4, 2, 1)),
    ],
)
@pytest.mark.parametrize("slices", [1, 2])
def test_tensor_takes_the_box_with_the_most_links(chip, chips, tensor, box, slices):
    found = make_topology(CHIPS[chip], chips * slices, slices)
    sizes = {"data": slices, "fsdp": chips // tensor, "tensor": tensor}
    mesh = MeshConfig(**sizes).build(found.devices)
    assert len(set(mesh.devices.flat)) == len(found.devices)
    for group in mesh.devices.reshape(-1, tensor):
        assert len({getattr(device, "slice_index", 0) for device in group}) == 1
        places = np.array([device.coords for device in group])
        sides = np.ptp(places, axis=0) + 1
        assert sorted(sides, reverse=True)[: len(box)] == sorted(box, reverse=True)


@pytest.mark.parametrize(("chip", "slices"), [("v5e", 3), ("v5e", 0), ("h100", 2)])
def test_slices_that_cannot_be_are_refused(chip, slices):
    with pytest.raises(UserError, match=f"--slices {slices}"):
        make_topology(CHIPS[chip], 16, slices)


def test_without_a_compiler_of_the_chip_there_are_virtual_devices(monkeypatch):
    monkeypatch.setattr(topology, "compiler_of", lambda chip: "cpu")
    assert make_topology(CHIPS["v5e"], 8).devices[0].platform == "cpu"
    with pytest.raises(UserError, match="16 virtual devices are needed, found 8"):
        make_topology(CHIPS["v5e"], 16)


def test_every_gpu_has_a_target():
    for chip in CHIPS.values():
        if chip.platform == "gpu":
            target = (topology.GPU_TARGETS / f"{chip.name}.textproto").read_text()
            assert f"memory_bandwidth: {chip.memory_bandwidth:.0f}\n" in target
            assert f"device_memory_size: {chip.memory_bytes:.0f}\n" in target
