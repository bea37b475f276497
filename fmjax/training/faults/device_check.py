"""Device self-test before a run: matrix products and a sum over devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_SIZE = 256


class BadDevice(RuntimeError):
    """A device gives wrong results."""


def check_devices(mesh: Mesh) -> None:
    """Tests a matrix product on every device, and a sum of one row from each device.

    All numbers are small integers, whose results are exact in any precision that
    matrix units use. Each device adds a one in its own column, so that a sum which is
    wrong on all devices still shows which device's row was wrong.

    Raises:
      BadDevice: names the devices with wrong results; devices of other processes are
        named if the sum shows them.
    """
    count = mesh.size
    i, j = np.indices((_SIZE, _SIZE))
    matrix = ((i * j) % 7 - 3).astype(np.float32)
    each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    matrices = jax.make_array_from_callback(
        (count, _SIZE, _SIZE), each, lambda index: matrix[None]
    )
    ones = jax.make_array_from_callback(
        (count, count), each, lambda index: np.eye(count, dtype=np.float32)[index]
    )
    products = _per_device(_products(matrices))
    wrong = [d for d, found in products.items() if not (found == matrix @ matrix).all()]
    _refuse("a matrix product", wrong)
    sums = {device: found == 1 for device, found in _per_device(_sum(ones)).items()}
    right = np.any(list(sums.values()), axis=0)
    if jax.process_count() > 1:
        # With one device per process, a process cannot tell from its own sum whether
        # its device or another one is at fault.
        right = multihost_utils.process_allgather(right.astype(np.int32)).any(0)
    everywhere = ~right
    wrong = [mesh.devices.flat[column] for column in np.flatnonzero(everywhere)]
    wrong += [d for d, right in sums.items() if not (right | everywhere).all()]
    _refuse("a sum over all devices", wrong)


@jax.jit
def _products(matrices: jax.Array) -> jax.Array:
    return jnp.einsum("nij,njk->nik", matrices, matrices)


def _sum(rows: jax.Array) -> jax.Array:
    everywhere = NamedSharding(rows.sharding.mesh, PartitionSpec())
    return jax.jit(lambda rows: rows.sum(0), out_shardings=everywhere)(rows)


def _per_device(array: jax.Array) -> dict[jax.Device, np.ndarray]:
    return {shard.device: np.asarray(shard.data) for shard in array.addressable_shards}


def _refuse(what: str, bad: list[jax.Device]) -> None:
    if bad:
        names = ", ".join(
            f"{device} ({device.device_kind}) of process {device.process_index}"
            for device in bad
        )
        raise BadDevice(
            f"{names}: {what} gave a wrong result. "
            "Leave the device out, or have its host looked at."
        )
