"""Collectives of compiled steps: kinds, bytes, how often, over which axes."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from fmjax.planning.collectives import Traffic, collectives, summarize
from fmjax.planning.hlo_module import parse_module

TEXTS = pathlib.Path(__file__).with_name("hlo")


def found_in(name: str, mesh_shape: dict[str, int]):
    return collectives(parse_module((TEXTS / name).read_text()), mesh_shape)


def test_a_collective_spread_over_fusions_counts_once_where_it_starts():
    gather, scatter = sorted(
        found_in("async_fusions.hlo", {"data": 1, "fsdp": 8}), key=lambda c: c.kind
    )

    assert (gather.kind, gather.bytes, gather.runs) == ("all-gather", 32 * 8 * 2, 6)
    assert gather.asynchronous
    assert gather.computation == "body"
    assert gather.axes == ("fsdp",)
    assert gather.group_size == 8

    # An all-reduce of which each device keeps a slice.
    assert (scatter.kind, scatter.bytes) == ("reduce-scatter", 16 * 8 * 2)
    assert not scatter.asynchronous
    assert scatter.runs == 1


def test_pairs_of_start_and_done_count_once():
    found = found_in("async_pairs.hlo", {"data": 2, "tensor": 4})

    assert [(c.kind, c.bytes, c.group_size, c.axes, c.asynchronous) for c in found] == [
        ("all-gather", 16 * 8 * 2, 4, ("tensor",), True),
        ("collective-permute", 4 * 8 * 2, 2, ("data",), True),
        # Nothing is computed before it ends.
        ("all-reduce", 8 * 8 * 2, 2, ("data",), False),
        # GPUs' scheduler says so itself.
        ("all-reduce", 8 * 8 * 2, 8, ("data", "tensor"), False),
        ("reduce-scatter", 16 * 8 * 2, 4, ("tensor",), True),
    ]


def test_traffic_is_summed_by_kind_and_axes():
    found = found_in("async_pairs.hlo", {"data": 2, "tensor": 4})
    assert summarize([*found, *found[:1]]) == [
        Traffic("all-gather", ("tensor",), 2 * 256, 2, 1.0),
        Traffic("reduce-scatter", ("tensor",), 256, 1, 1.0),
        Traffic("all-reduce", ("data",), 128, 1, 0.0),
        Traffic("all-reduce", ("data", "tensor"), 128, 1, 0.0),
        Traffic("collective-permute", ("data",), 64, 1, 1.0),
    ]


def test_a_mesh_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"8 devices.*has 4"):
        found_in("async_pairs.hlo", {"data": 4})


def test_real_programs_have_the_collectives_that_they_name():
    shape = {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = jax.make_mesh((2, 2, 2), tuple(shape), axis_types=(AxisType.Auto,) * 3)

    def step(x, weights):
        def layer(x, w):
            w = jax.lax.all_gather(w, "tensor", axis=0, tiled=True)
            y = x @ w
            loss = jax.lax.psum(y, ("data", "tensor"))
            return y + loss, jax.lax.psum_scatter(y, "fsdp", tiled=True)

        x, parts = jax.lax.scan(layer, x, weights)
        x = jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True)
        x = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
        return x.sum(), parts

    sharded = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, "tensor")),
        out_specs=(PartitionSpec(), PartitionSpec(None, "fsdp")),
        check_vma=False,
    )
    compiled = jax.jit(sharded).lower(jnp.ones((6, 8)), jnp.ones((5, 8, 8))).compile()
    found = collectives(parse_module(compiled.as_text()), shape)

    by_kind = {c.kind: (c.bytes, c.runs, c.group_size, c.axes) for c in found}
    assert by_kind == {
        "all-gather": (8 * 8 * 4, 5, 2, ("tensor",)),
        "all-reduce": (6 * 8 * 4, 5, 4, ("data", "tensor")),
        "reduce-scatter": (6 * 8 * 4, 5, 2, ("fsdp",)),
        "all-to-all": (6 * 8 * 4, 1, 2, ("fsdp",)),
        "collective-permute": (6 * 8 * 4, 1, 2, ("data",)),
    }
    assert len(found) == 5
    assert not any(c.asynchronous for c in found)
