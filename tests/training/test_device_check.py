"""Good devices pass; one that computes wrongly is named."""

import jax
import numpy as np
import pytest

from fmjax.sharding.mesh import MeshConfig
from fmjax.training import device_check
from fmjax.training.device_check import BadDevice, check_devices


@pytest.mark.parametrize(
    "config", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)]
)
def test_good_devices_pass(config):
    check_devices(config.build())


def test_a_bad_device_is_named(monkeypatch):
    products = device_check._products
    bad = jax.devices()[5]

    def wrong(matrices):
        found = products(matrices)
        parts = []
        for shard in found.addressable_shards:
            values = np.array(shard.data)
            if shard.device == bad:
                values[0, 3, 4] += 1
            parts.append(jax.device_put(values, shard.device))
        return jax.make_array_from_single_device_arrays(
            found.shape, found.sharding, parts
        )

    monkeypatch.setattr(device_check, "_products", wrong)
    with pytest.raises(BadDevice, match=r"cpu:5") as error:
        check_devices(MeshConfig(data=8).build())
    assert "cpu:4" not in str(error.value)
    assert "a matrix product" in str(error.value)
