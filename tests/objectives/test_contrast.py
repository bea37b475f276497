"""Contrastive losses against float64 NumPy, on meshes, and what they hold in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from on_meshes import MESHES, build
from tiers import slow
from tiny_objectives import OBJECTIVES

from fmjax.objectives.contrast import (
    sigmoid_contrast,
    softmax_contrast,
    view_contrast,
)
from fmjax.sharding.mesh import batch_sharding, on_mesh
from fmjax.training.state import abstract_variables

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


@pytest.mark.parametrize("chunks", [1, 2, 5, 8, 99])
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


@pytest.mark.parametrize("chunks", [1, 7, 8])
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


@pytest.mark.parametrize("chunks", [1, 7, 8])
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


def dense_two_sided(x, y, scale):
    logits = scale * x @ y.T
    match = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, 1) - match
    return (rows + jax.nn.logsumexp(logits, 0) - match).sum() / 2


def dense_one_sided(x, y, scale):
    logits = scale * x @ y.T - 2.0
    return jnp.log1p(jnp.exp(jnp.where(jnp.eye(len(x)), -logits, logits))).sum()


def dense_of_views(x, y, scale):
    z = jnp.concatenate([x, y])
    logits = jnp.where(jnp.eye(len(z)), -jnp.inf, z @ z.T / 0.1)
    partner = jnp.roll(jnp.arange(len(z)), len(x))
    match = jnp.take_along_axis(logits, partner[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, 1) - match).sum() / 2 * scale


DENSE = {
    two_sided: dense_two_sided,
    one_sided: dense_one_sided,
    of_views: dense_of_views,
}


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


def losses_on_meshes():
    """Losses, meshes and chunks: by default each two of them, with --slow all three."""
    for i, loss in enumerate(DENSE):
        for j, mesh in enumerate((None, *MESHES)):
            for k, chunks in enumerate((1, 3, 4)):
                case = (loss, mesh, chunks)
                yield case if (i + j + k) % 3 == 0 else slow(*case)


@pytest.mark.parametrize(("loss", "mesh", "chunks"), losses_on_meshes())
def test_in_chunks_on_any_mesh_it_is_the_dense_loss_in_float64(loss, mesh, chunks):
    rng = np.random.default_rng(2)
    x, y = unit(rng, 16, E), unit(rng, 16, E)
    found, gradients = on(
        MESHES.get(mesh), functools.partial(loss, chunks=chunks), x, y
    )
    with jax.enable_x64(True):
        exact = (x.astype(np.float64), y.astype(np.float64), np.float64(7.0))
        value, expected = jax.value_and_grad(DENSE[loss], (0, 1, 2))(*exact)
    assert value.dtype == np.float64
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for a, b in zip(expected, gradients):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("mesh", [slow(None), "data", slow("fsdp")])
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

    for loss in DENSE:
        # NT-Xent has both views on both sides.
        of_all = share * (4 if loss is of_views else 1)
        assert temporary_bytes(functools.partial(loss, chunks=16)) < of_all
        assert temporary_bytes(DENSE[loss]) >= of_all


@pytest.mark.parametrize(
    ("name", "accuracies"),
    [
        ("nt_xent", {"nearest"}),
        ("image_text_contrast", {"image_to_text", "text_to_image"}),
        ("image_text_contrast_sigmoid", {"image_to_text", "text_to_image"}),
        ("contrastive_captioning", {"image_to_text", "text_to_image"}),
    ],
)
def test_nearest_neighbours_are_sought_in_evaluation_alone(name, accuracies):
    objective, batch = OBJECTIVES[name]
    _, variables = abstract_variables(objective)
    keys = jax.random.split(jax.random.key(0), len(batch["weights"]))

    def metrics(keys):
        return jax.eval_shape(objective.loss, variables, batch, keys).metrics.keys()

    assert accuracies <= metrics(None)
    assert not accuracies & metrics(keys)
