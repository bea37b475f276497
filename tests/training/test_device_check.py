"""Good devices pass; one that computes wrongly is named."""

import jax
import numpy as np
import pytest

from fmjax.sharding.mesh import MeshConfig
from fmjax.training.faults import device_check
from fmjax.training.faults.device_check import BadDevice, check_devices


@pytest.mark.parametrize(
    "config", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)]
)
def test_good_devices_pass(config):
    check_devices(config.build())


def spoil(array, device, index, by=1.0):
    """The same array, but for one number in what one device holds."""
    parts = []
    for shard in array.addressable_shards:
        values = np.array(shard.data)
        if shard.device == device:
            values[index] += by
        parts.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def test_a_device_that_multiplies_wrongly_is_named(monkeypatch):
    products = device_check._products
    monkeypatch.setattr(
        device_check,
        "_products",
        lambda matrices: spoil(products(matrices), jax.devices()[5], (0, 3, 4)),
    )
    with pytest.raises(BadDevice, match=r"cpu:5") as error:
        check_devices(MeshConfig(data=8).build())
    assert "cpu:4" not in str(error.value)
    assert "a matrix product" in str(error.value)


@pytest.mark.parametrize("config", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_device_that_gives_a_wrong_number_to_a_sum_is_named(monkeypatch, config):
    mesh, add = MeshConfig(**config).build(), device_check._sum
    bad = mesh.devices.flat[5]
    monkeypatch.setattr(
        device_check, "_sum", lambda rows: add(spoil(rows, bad, (0, 5), -0.5))
    )
    with pytest.raises(BadDevice, match=rf"cpu:{bad.id} .* a sum") as error:
        check_devices(mesh)
    assert str(error.value).count("of process") == 1


def test_a_device_that_is_given_another_sum_is_named(monkeypatch):
    add, bad = device_check._sum, jax.devices()[3]
    monkeypatch.setattr(
        device_check, "_sum", lambda rows: spoil(add(rows), bad, (1,), 7.0)
    )
    with pytest.raises(BadDevice, match=r"cpu:3 .* a sum") as error:
        check_devices(MeshConfig(data=8).build())
    assert str(error.value).count("of process") == 1


@pytest.mark.parametrize(("right_there", "count"), [(1, 8), (0, 1)])
def test_processes_agree_on_whose_fault_a_wrong_sum_is(monkeypatch, right_there, count):
    add = device_check._sum

    def wrong_here(rows):
        found = add(rows)
        for device in jax.devices():
            found = spoil(found, device, (2,), 1.0)
        return found

    def gathered(right):
        return np.stack([right, np.full_like(right, right_there)])

    monkeypatch.setattr(device_check, "_sum", wrong_here)
    monkeypatch.setattr(device_check.jax, "process_count", lambda: 2)
    monkeypatch.setattr(device_check.multihost_utils, "process_allgather", gathered)
    # Wrong here alone, it is the fault of those that have it wrong; else of its row's.
    with pytest.raises(BadDevice, match=r"cpu:2 .* a sum") as error:
        check_devices(MeshConfig(data=8).build())
    assert str(error.value).count("of process") == count
