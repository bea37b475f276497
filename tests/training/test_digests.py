"""A digest notices any bit, and finds the same pieces on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.sharding.mesh import MeshConfig
from fmjax.training.checkpoint.digests import (
    as_json,
    damaged,
    digest,
    from_json,
    opened,
    own_pieces,
    sealed,
)


def spread(values, mesh_config, spec, count=8):
    mesh = mesh_config.build(jax.devices()[:count])
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))


def digests_of(tree):
    return {piece: digest(values) for piece, values in own_pieces(tree).items()}


def test_it_is_xxhash_of_the_bytes_in_order():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert digest(values.T) == xxhash.xxh3_64_hexdigest(values.T.tobytes())
    assert digest(jnp.float32(3.5)) == xxhash.xxh3_64_hexdigest(
        np.float32(3.5).tobytes()
    )


def test_pieces_cover_each_array_once():
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    tree = {"x": spread(values, mesh, ("fsdp", "tensor"))}
    covered = np.zeros((8, 8), int)
    for piece, found in own_pieces(tree).items():
        part = tuple(slice(*span) for span in piece.span)
        covered[part] += 1
        np.testing.assert_array_equal(found, values[part])
    assert (covered == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize(
    ("mesh", "spec"),
    [
        (MeshConfig(), (None, None)),
        (MeshConfig(data=1, fsdp=8), (None, "fsdp")),
        (MeshConfig(data=1, fsdp=2, tensor=4), ("tensor", "fsdp")),
    ],
    ids=["replicated", "columns", "both"],
)
def test_digests_hold_on_another_mesh(dtype, mesh, spec):
    values = (np.arange(64).reshape(8, 8) % 7).astype(jnp.dtype(dtype))
    before = {"a": {"x": spread(values, MeshConfig(data=1, fsdp=8), ("fsdp",))}}
    digests = from_json(as_json(digests_of(before)))
    assert damaged({"a": {"x": spread(values, mesh, spec)}}, digests) == []


@given(st.integers(0, 8 * 8 * 32 - 1))
def test_any_flipped_bit_is_noticed(bit):
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    digests = digests_of({"x": jnp.asarray(values), "y": jnp.ones(3)})
    raw = bytearray(values.tobytes())
    raw[bit // 8] ^= 1 << bit % 8
    flipped = np.frombuffer(bytes(raw), np.float32).reshape(8, 8)
    tree = {"x": jnp.asarray(flipped), "y": jnp.ones(3)}
    assert damaged(tree, digests) == ["x"]


def test_what_has_no_digest_or_another_shape_is_damaged():
    digests = digests_of({"x": jnp.ones((2, 3))})
    assert damaged({"x": jnp.ones((2, 3)), "z": jnp.ones(2)}, digests) == ["z"]
    assert damaged({"x": jnp.ones((3, 2))}, digests) == ["x"]
    assert damaged({"x": jnp.ones((2, 3), jnp.int32)}, digests) == ["x"]
    assert damaged({}, digests) == []


def test_a_seal_breaks_with_its_value():
    seal = sealed({"position": 7, "spans": (1, 2)})
    assert opened(seal) == {"position": 7, "spans": [1, 2]}
    with pytest.raises(ValueError, match="not what was saved"):
        opened(seal | {"value": {"position": 8, "spans": [1, 2]}})
