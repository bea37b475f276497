"""Bounds of collectives on tori, in hosts of GPUs and between both."""

import numpy as np
import pytest
from planning.chips import GPU, TPU, Chip

from fmjax.planning.collectives import Collective
from fmjax.planning.network import Network


def seconds(
    kind: str, groups, chip: Chip, mesh: dict[str, int], bytes_: int = 6400, **options
) -> float:
    groups = np.array(groups)
    joined = Collective(kind, bytes_, 1, groups.shape[1], (), False, "c", "", groups)
    return Network(chip, mesh, **options).seconds(joined)


def ring(size: int) -> list[list[int]]:
    return [list(range(size))]


@pytest.mark.parametrize(
    ("size", "torus", "group", "links"),
    [
        # The whole slice: both ways in both dimensions, if these wrap around.
        (256, (16, 16), 256, 4),
        (128, (8, 16), 128, 3),
        (8, (2, 4), 8, 2),
        (64, (4, 4, 4), 64, 6),
        (32, (2, 4, 4), 32, 3),
        # One dimension that wraps around or not, and parts of one.
        (256, (16, 16), 16, 2),
        (64, (4, 4, 4), 4, 2),
        (16, (4, 4), 4, 1),
        (32, (4, 8), 2, 1),
        (256, (16, 16), 8, 1),
        # Two dimensions that wrap around, and half of one.
        (256, (16, 16), 128, 3),
        (8, (1, 8), 8, 1),
    ],
)
def test_rings_use_the_links_of_their_dimensions(size, torus, group, links):
    share = (group - 1) / group
    gather = seconds("all-gather", ring(group), TPU, {"a": size}, torus=torus)
    assert gather == pytest.approx(6400 * share / (100 * links))
    for kind, times in (("reduce-scatter", 1), ("all-reduce", 2)):
        other = seconds(kind, ring(group), TPU, {"a": size}, torus=torus)
        assert other == pytest.approx(times * gather)


def test_a_ring_on_a_real_ring_takes_as_long_as_its_steps():
    # Both ways around a ring of 16, eight steps each send 1/16 over each link; the last
    # step brings only one of the two parts that are still missing.
    steps, part = 15 / 2, 6400 / 16
    gather = seconds("all-gather", ring(16), TPU, {"a": 256}, torus=(16, 16))
    assert gather == pytest.approx(steps * part / 100)


@pytest.mark.parametrize(
    ("box", "stride", "links"),
    [
        # Eight as 2 × 4 beside each other, and 32 of them: 8 that are 2 apart and wrap
        # around, 4 that are 4 apart.
        ((2, 4), (1, 1), 1 + 1),
        ((8, 4), (2, 4), 2 / 2 + 2 / 4),
        ((4, 8), (1, 1), 1 + 1),
        ((4, 16), (1, 1), 1 + 2),
        ((4, 2), (1, 8), 1 + 2 / 8),
    ],
)
def test_boxes_use_the_links_of_all_their_dimensions(box, stride, links):
    along = np.indices(box).reshape(2, -1).T * stride
    group = np.ravel_multi_index(along.T, (16, 16))
    share = (len(group) - 1) / len(group)
    options = {"torus": (16, 16), "chip": TPU, "mesh": {"a": 256}}
    gather = seconds("all-gather", [group], **options)
    assert gather == pytest.approx(6400 * share / (100 * links))
    # Where the mesh has its devices is what counts, not their numbers.
    moved = np.random.default_rng(0).permutation(256)
    positions = np.empty((256, 2), int)
    positions[moved] = np.stack(np.unravel_index(np.arange(256), (16, 16)), -1)
    options["positions"] = positions
    assert seconds("all-gather", [moved[group]], **options) == gather
    # Devices that fill no box have one link.
    moved[group[0]] = moved[255]
    one = seconds("all-gather", [moved[group]], **options)
    assert one == pytest.approx(6400 * share / 100)


def test_the_torus_is_as_even_as_the_number_of_chips_allows():
    for size, dimensions, torus in ((256, 2, (16, 16)), (256, 3, (4, 8, 8))):
        chip = Chip(torus_dimensions=dimensions)
        given, found = (
            seconds("all-to-all", ring(size), chip, {"a": size}, **options)
            for options in ({"torus": torus}, {})
        )
        assert given == found


@pytest.mark.parametrize(
    ("torus", "group", "ways"),
    [((4, 4), 16, 1), ((2, 8), 16, 1), ((16, 16), 16, 2), ((16, 16), 256, 2)],
)
def test_an_all_to_all_crosses_the_middle(torus, group, ways):
    # Along the longest dimension: count what crosses a cut into halves, and its links.
    each = 6400 / group  # from every device to every device
    crossing = each * (group / 2) ** 2
    rings = group // max(torus)
    time = seconds("all-to-all", ring(group), TPU, {"a": np.prod(torus)}, torus=torus)
    assert time == pytest.approx(crossing / (ways * rings * 100))


def test_a_permutation_takes_one_link():
    pairs = [[0, 1], [1, 2], [2, 3], [3, 0]]
    time = seconds("collective-permute", pairs, TPU, {"a": 4})
    assert time == 6400 / 100


def test_gpus_of_a_host_reach_each_other_and_hosts_exchange_parts():
    mesh = {"data": 2, "fsdp": 4}
    inside = [[0, 1, 2, 3], [4, 5, 6, 7]]
    time = seconds("all-gather", inside, GPU, mesh)
    assert time == pytest.approx(6400 * 3 / 4 / 100)
    # One GPU of each host: all of it over the network.
    across = [[0, 4], [1, 5], [2, 6], [3, 7]]
    time = seconds("all-gather", across, GPU, mesh)
    assert time == pytest.approx(6400 / 2 / 10)
    # All: a quarter of the array over each GPU's network, then within the hosts.
    time = seconds("all-reduce", ring(8), GPU, mesh)
    assert time == pytest.approx(2 * (6400 / 4 / 2 / 10 + 6400 * 3 / 4 / 100))
    time = seconds("collective-permute", [[3, 4], [4, 3]], GPU, mesh)
    assert time == pytest.approx(6400 / 10)
    time = seconds("all-to-all", ring(8), GPU, mesh)
    assert time == pytest.approx(6400 / 2 / 10 + 6400 / 2 * 3 / 4 / 100)


def test_slices_of_tpus_exchange_over_the_slow_network():
    # Slices along "data", the mesh's second axis: devices 0, 1, 4, 5, … in the first.
    mesh = {"fsdp": 4, "data": 4}
    options = {"slices": {"data": 2}, "torus": (2, 4)}
    inside = [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    time = seconds("all-gather", inside, TPU, mesh, **options)
    assert time == pytest.approx(6400 * 7 / 8 / 200)
    across = [[n, n + 2] for n in (0, 1, 4, 5, 8, 9, 12, 13)]
    time = seconds("all-gather", across, TPU, mesh, **options)
    assert time == pytest.approx(6400 / 2 / 10)
    time = seconds("all-gather", ring(16), TPU, mesh, **options)
    assert time == pytest.approx(6400 / 8 / 2 / 10 + 6400 * 7 / 8 / 200)
