"""A trial of every device before a run: products and a sum with known results."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_SIZE = 256


class BadDevice(RuntimeError):
    """A device computes wrongly."""


def check_devices(mesh: Mesh) -> None:
    """Multiplies matrices on every device, and adds up one number from each.

    All numbers are small integers, whose results are exact in any precision that
    matrix units use.

    Raises:
      BadDevice: names the devices of this process that gave something else.
    """
    count = mesh.size
    i, j = np.indices((_SIZE, _SIZE))
    matrix = ((i * j) % 7 - 3).astype(np.float32)
    each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    matrices = jax.make_array_from_callback(
        (count, _SIZE, _SIZE), each, lambda index: matrix[None]
    )
    numbers = jax.make_array_from_callback(
        (count,), each, lambda index: np.arange(count, dtype=np.float32)[index]
    )
    _compare("a matrix product", _products(matrices), matrix @ matrix)
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    _compare("a sum over all devices", total(numbers), np.arange(count).sum())


@jax.jit
def _products(matrices: jax.Array) -> jax.Array:
    return jnp.einsum("nij,njk->nik", matrices, matrices)


def _compare(what: str, found: jax.Array, expected: np.ndarray) -> None:
    bad = [
        shard.device
        for shard in found.addressable_shards
        if not (np.asarray(shard.data) == expected).all()
    ]
    if bad:
        names = ", ".join(f"{device} ({device.device_kind})" for device in bad)
        raise BadDevice(
            f"{names} of process {jax.process_index()}: {what} gave a wrong result. "
            "Leave the device out, or have its host looked at."
        )
