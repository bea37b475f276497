"""What each device holds of a state, against closed forms."""

import numpy as np
import pytest
from planning.test_plan import TEXT, TINY

import fmjax
from fmjax.errors import UserError


def of_mesh(*mesh):
    bindings = [TEXT, "train.steps=100", "transformer.num_kv_heads=2", *mesh]
    return fmjax.shardings(fmjax.load_experiment(TINY, bindings))


def test_bytes_are_those_of_the_blocks_that_devices_hold():
    frame = of_mesh("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    assert set(frame.part) == {"parameters", "optimizer"}
    for row in frame.itertuples():
        size = np.prod(row.shape, dtype=int) * np.dtype(row.dtype).itemsize
        assert row.bytes == size
        blocks = row.sharding.devices_indices_map(row.shape)
        assert len(blocks) == 8
        empty = np.empty(row.shape, row.dtype)
        assert {empty[index].nbytes for index in blocks.values()} == {
            row.bytes_per_device
        }
    weight = frame.loc["stack/layer_0/mlp/in"]
    # 32 × 64 in float32, over fsdp and tensor.
    assert weight["shape"] == (32, 64)
    assert weight.bytes == 4 * weight.bytes_per_device == 4 * 32 * 64


def test_zero1_divides_the_optimizers_state_alone():
    whole = of_mesh("mesh.data=8").groupby("part").bytes_per_device.sum()
    zero1 = of_mesh("mesh.data=8", "mesh.zero1=True")
    found = zero1.groupby("part").bytes_per_device.sum()
    assert found.parameters == whole.parameters
    assert found.optimizer < 0.2 * whole.optimizer


def test_averages_are_a_part_of_their_own():
    frame = of_mesh("train.ema_decay=0.9")
    parts = frame.groupby("part").bytes.sum()
    assert parts.averages == parts.parameters


def test_a_mesh_that_does_not_divide_an_array_is_refused():
    with pytest.raises(UserError, match=r"mesh\.tensor = 8 does not divide"):
        of_mesh("mesh.data=1", "mesh.tensor=8")
