"""Grouped products, on a CPU in tiles, against NumPy and against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.models.layers.grouped_dot import _by_megablox, grouped_dot

N, D, F, E = 150, 5, 7, 3


def arrays():
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.normal, 0, 1)
    rows, kernels = draw(size=(N, D)), draw(size=(E, D, F))
    return rows.astype(np.float32), kernels.astype(np.float32)


# Tiles of 25 rows: groups of none, of less than one, of some and a part, of all.
SIZES = [(50, 50, 50), (0, 150, 0), (1, 0, 149), (75, 26, 24), (20, 30, 0), (0, 0, 0)]


# That of TPUs, interpreted.
MEGABLOX = functools.partial(_by_megablox, interpret=True)


@pytest.mark.parametrize("dot", [grouped_dot, MEGABLOX], ids=["cpu", "tpu"])
@pytest.mark.parametrize("sizes", SIZES)
def test_rows_meet_the_kernel_of_their_group(sizes, dot):
    rows, kernels = arrays()
    found = compiled(dot)(rows, kernels, jnp.array(sizes))
    ends = np.cumsum(sizes)
    for kernel, start, end in zip(kernels, ends - sizes, ends):
        expected = rows[start:end].astype(float) @ kernel
        np.testing.assert_allclose(found[start:end], expected, atol=1e-5)


@pytest.mark.parametrize("ours", [grouped_dot, MEGABLOX], ids=["cpu", "tpu"])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_are_those_of_ragged_dot(sizes, ours):
    rows, kernels = arrays()
    found, expected = (
        compiled(gradients_of(dot))(rows, kernels, jnp.array(sizes))
        for dot in (ours, jax.lax.ragged_dot)
    )
    for one, other, end in zip(found, expected, (sum(sizes), E)):
        np.testing.assert_allclose(one[:end], other[:end], rtol=1e-4, atol=1e-4)


@functools.cache
def gradients_of(dot):
    def loss(rows, kernels, sizes):
        real = jnp.arange(N)[:, None] < sizes.sum()
        return (jnp.where(real, dot(rows, kernels, sizes), 0) ** 2).sum()

    return jax.grad(loss, (0, 1))


@functools.cache
def compiled(function):
    return jax.jit(function)
