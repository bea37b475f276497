"""Tokens reach their experts by both all-to-alls, the dense one and the ragged one.

XLA for CPUs has no ragged all-to-all. It is written down here as JAX documents it:
every sender writes its slices into the outputs of receivers, at offsets that it names.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fmjax.models.layers import expert_blocks, expert_exchange

DEVICES, N, M, D, EXPERTS = 4, 12, 6, 5, 8


def as_documented(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    me = jax.lax.axis_index(axis_name)
    gather = functools.partial(jax.lax.all_gather, axis_name=axis_name)
    operands, starts, sizes, places = map(
        gather, (operand, input_offsets, send_sizes, output_offsets)
    )
    at = jnp.arange(len(output))
    for sender in range(DEVICES):
        place, size = places[sender, me], recv_sizes[sender]
        row = jnp.clip(at - place + starts[sender, me], 0, len(operand) - 1)
        written = (at >= place) & (at < place + size)
        output = jnp.where(written[:, None], operands[sender][row], output)
        # Both sides must name the same number of rows.
        output = jnp.where(size == sizes[sender, me], output, jnp.nan)
    return output


def undefined(shape, dtype):
    return jnp.full(shape, jnp.nan, dtype)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_comes_back_from_its_expert(ragged, seed, monkeypatch):
    monkeypatch.setattr(jax.lax, "empty", undefined)
    monkeypatch.setattr(expert_blocks, "SMALLEST_BLOCK", 1)
    if ragged:
        monkeypatch.setattr(expert_exchange, "platform", lambda: "tpu")
        monkeypatch.setattr(jax.lax, "ragged_all_to_all", as_documented)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(DEVICES * M, D)).astype(np.float32)
    rows = rng.integers(0, M, (DEVICES, N))
    # Some experts get nothing; at last all rows of all devices go to one.
    experts = rng.choice([0, 2, 3, 7], (DEVICES, N)) if seed < 2 else np.full((4, N), 5)
    kernels = rng.normal(size=(EXPERTS, D, D)).astype(np.float32)

    def feed_forward(rows, kernels, product):
        return product(rows, kernels["in"])

    devices = np.array(jax.devices()[:DEVICES])
    mesh = jax.sharding.Mesh(devices, ("expert",))
    part = PartitionSpec("expert")

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(part,) * 4, out_specs=part, check_vma=False
    )
    def run(x, rows, experts, kernels):
        return expert_exchange.exchange(
            x,
            rows[0],
            experts[0],
            {"in": kernels},
            feed_forward=feed_forward,
            axes=("expert",),
        )

    weights = rng.normal(size=(DEVICES * N, D)).astype(np.float32)

    @jax.jit
    def run_and_gradients(x, kernels):
        found, pull = jax.vjp(lambda x, k: run(x, rows, experts, k), x, kernels)
        return found, pull(weights)

    found, gradients = run_and_gradients(x, kernels)
    # Of every row, its token among all, its expert and the output.
    token = (rows + M * np.arange(DEVICES)[:, None]).ravel()
    expert = experts.ravel()
    outputs = np.einsum("nd,ndf->nf", x[token], kernels[expert])
    np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-5)
    into_x, into_kernels = np.zeros_like(x), np.zeros_like(kernels)
    np.add.at(into_x, token, np.einsum("nf,ndf->nd", weights, kernels[expert]))
    np.add.at(into_kernels, expert, np.einsum("nd,nf->ndf", x[token], weights))
    for ours, expected in zip(gradients, (into_x, into_kernels)):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
