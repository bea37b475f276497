"""What --chips, --nodes and --gpus mean."""

import pytest

from fmjax.errors import UserError
from fmjax.launch import hardware

# (hosts, devices of JAX a host, the shape that Google Cloud names), from the tables of
# cloud.google.com/tpu/docs for v5e, v6e and v5p, of hosts with four chips.
TPUS = {
    ("v5e-4", 1): (1, 4, "2x2"),
    ("v5e-32", 1): (8, 4, "4x8"),
    ("v5e-256", 1): (64, 4, "16x16"),
    ("v5e-512", 2): (128, 4, "16x16"),
    ("v6e-8", 1): (2, 4, "2x4"),
    ("v5p-4", 1): (1, 4, "2x2x1"),
    ("v5p-32", 1): (8, 4, "2x4x4"),
    ("v5p-128", 1): (32, 4, "4x4x8"),
    ("v7x-64", 1): (16, 8, "4x4x4"),  # two devices a chip
}


@pytest.mark.parametrize(("asked", "found"), TPUS.items(), ids=str)
def test_a_slice_has_the_hosts_and_shape_of_google_clouds_tables(asked, found):
    place = hardware.of_chips(*asked)
    shape = "x".join(map(str, place.shape))
    assert (place.hosts, place.devices_per_host, shape) == found
    assert place.slices == asked[1]
    assert place.hosts_per_slice * place.slices == place.hosts
    assert place.chips_per_host == 4


@pytest.mark.parametrize(
    ("text", "hosts", "gpus"), [("h100-64", 8, 8), ("h100-4", 1, 4), ("b200-8", 1, 8)]
)
def test_gpus_fill_hosts(text, hosts, gpus):
    place = hardware.of_chips(text)
    assert (place.hosts, place.devices_per_host, place.shape) == (hosts, gpus, ())


def test_nodes_without_gpus_have_one_device():
    assert hardware.of_nodes(4, 0).devices == 4
    assert hardware.of_nodes(4, 8).devices == 32
    assert hardware.of_nodes(4, None).devices is None


@pytest.mark.parametrize(
    ("text", "slices", "named"),
    [
        ("v5e", 1, "expected KIND-NUMBER"),
        ("v9-8", 1, "expected one of v4, v5e"),
        ("v5e-24", 1, "4, 8, 16"),
        ("v5e-1024", 1, "4, 8, 16"),
        ("v5e-32", 3, "--slices 3"),
        ("h100-12", 1, "whole hosts of 8"),
        ("h100-16", 2, "--slices 2"),
    ],
)
def test_chips_that_there_are_not_are_refused_by_name(text, slices, named):
    with pytest.raises(UserError, match=named):
        hardware.of_chips(text, slices)


def test_numbers_that_are_not_positive_are_refused():
    with pytest.raises(UserError, match="--nodes 0"):
        hardware.of_nodes(0, 8)
    with pytest.raises(UserError, match="--gpus -1"):
        hardware.of_nodes(1, -1)
