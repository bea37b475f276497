"""Contrastive losses against float64 NumPy, on meshes, and what they hold in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from on_meshes import MESHES, build

from fmjax.objectives.contrast import (
    sigmoid_contrast,
    softmax_contrast,
    view_contrast,
)
from fmjax.sharding.mesh import batch_sharding, on_mesh

B, E = 24, 5
COUNTS = np.arange(B) % 7 != 3


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    return unit(rng, B, E), unit(rng, B, E)


def log_sum_exp(x):
    most = x.max()
    return most + np.log(np.exp(x - most).sum())


@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_softmax_contrast_is_its_definition(pairs, chunks):
    x, y = pairs
    of_x, of_y = softmax_contrast(x, y, jnp.float32(9.0), jnp.array(COUNTS), chunks)
    logits = 9.0 * x.astype(np.float64) @ y.T.astype(np.float64)
    for i in range(B):
        if not COUNTS[i]:
            assert of_x[i] == of_y[i] == 0
            continue
        expected = log_sum_exp(logits[i, COUNTS]) - logits[i, i]
        np.testing.assert_allclose(of_x[i], expected, rtol=2e-5)
        expected = log_sum_exp(logits[COUNTS, i]) - logits[i, i]
        np.testing.assert_allclose(of_y[i], expected, rtol=2e-5)


@pytest.mark.parametrize("chunks", [1, 8])
def test_sigmoid_contrast_is_its_definition(pairs, chunks):
    x, y = pairs
    losses = sigmoid_contrast(
        x, y, jnp.float32(9.0), jnp.float32(-3.0), jnp.array(COUNTS), chunks
    )
    logits = 9.0 * x.astype(np.float64) @ y.T.astype(np.float64) - 3.0
    for i in range(B):
        expected = sum(
            np.log1p(np.exp(-logits[i, j] if i == j else logits[i, j]))
            for j in range(B)
            if COUNTS[j]
        )
        np.testing.assert_allclose(losses[i], COUNTS[i] * expected, rtol=2e-5)


@pytest.mark.parametrize("chunks", [1, 8])
def test_view_contrast_is_its_definition(chunks):
    z = unit(np.random.default_rng(1), B, 2, E)
    losses = view_contrast(z, 0.2, jnp.array(COUNTS), chunks)
    exact = z.astype(np.float64)
    for i in range(B):
        expected = 0.0
        for own in range(2):
            others = [
                exact[i, own] @ exact[j, view] / 0.2
                for j in range(B)
                for view in range(2)
                if COUNTS[j] and (j, view) != (i, own)
            ]
            match = exact[i, 0] @ exact[i, 1] / 0.2
            expected += (log_sum_exp(np.array(others)) - match) / 2
        np.testing.assert_allclose(losses[i], COUNTS[i] * expected, rtol=2e-5)


def two_sided(x, y, scale, chunks):
    of_x, of_y = softmax_contrast(x, y, scale, jnp.ones(len(x), bool), chunks)
    return (of_x + of_y).sum() / 2


def one_sided(x, y, scale, chunks):
    everyone = jnp.ones(len(x), bool)
    return sigmoid_contrast(x, y, scale, jnp.float32(-2.0), everyone, chunks).sum()


def of_views(x, y, scale, chunks):
    everyone = jnp.ones(len(x), bool)
    return view_contrast(jnp.stack([x, y], 1), 0.1, everyone, chunks).sum() * scale


def dense(x, y, scale):
    logits = scale * x @ y.T
    match = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, 1) - match
    return (rows + jax.nn.logsumexp(logits, 0) - match).sum() / 2


def on(mesh_config, loss, x, y):
    """The loss and its gradients, computed on a mesh; None is one device."""
    mesh, rules = build(mesh_config)
    sharded = batch_sharding(mesh, rules)
    whole = NamedSharding(mesh, PartitionSpec())
    with on_mesh(mesh, rules):
        arguments = (
            jax.device_put(x, sharded),
            jax.device_put(y, sharded),
            jax.device_put(jnp.float32(7.0), whole),
        )
        found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arguments)
    return jax.device_get(found)


@pytest.mark.parametrize("mesh", [None, *MESHES])
@pytest.mark.parametrize("loss", [two_sided, one_sided, of_views])
def test_chunks_and_meshes_change_nothing(mesh, loss):
    rng = np.random.default_rng(2)
    x, y = unit(rng, 16, E), unit(rng, 16, E)
    value, gradients = on(None, functools.partial(loss, chunks=1), x, y)
    other, others = on(MESHES.get(mesh), functools.partial(loss, chunks=4), x, y)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(gradients, others):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
    if loss is two_sided:
        value, gradients = on(None, dense, x, y)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        for a, b in zip(gradients, others):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("mesh", [None, "data", "fsdp"])
def test_a_device_never_holds_its_share_of_the_logits(mesh):
    rows, width = 2048, 4
    mesh, rules = build(MESHES.get(mesh))
    sharding = batch_sharding(mesh, rules)
    side = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=sharding)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    share = rows * rows * 4 // mesh.size

    def temporary_bytes(loss):
        gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        with on_mesh(mesh, rules):
            compiled = gradients.lower(side, side, number).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for loss in (two_sided, one_sided):
        assert temporary_bytes(functools.partial(loss, chunks=16)) < share
    assert temporary_bytes(dense) >= share
