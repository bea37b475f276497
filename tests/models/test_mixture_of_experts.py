"""Mixtures of experts against float64 NumPy, token by token as the papers tell it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts, MixtureOfExperts
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.sharding.mesh import MeshConfig, batch_sharding, on_mesh
from fmjax.sharding.rules import logical_axes, named_shardings, param_specs
from fmjax.training.state import abstract_variables

B, T, D, F, E = 3, 14, 6, 10, 5


def layer(per_token=2, capacity=None, gated=True, num_experts=E):
    return MixtureOfExperts(
        Experts(num_experts, per_token, capacity),
        mlp_dim=F,
        activation="silu" if gated else "relu",
        gated=gated,
        init_std=0.02,
        out_init_std=0.02,
        dtype=jnp.dtype(jnp.float32),
    )


def random_weights(module, seed=0):
    x = jnp.zeros((1, 1, D))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, None)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.7, leaf.shape).astype(np.float32),
        nn.unbox(shapes)["params"],
    )


@functools.cache
def compiled(module):
    return jax.jit(module.apply)


def apply(module, params, x, real=None):
    return compiled(module)({"params": params}, x, real)


def texts(seed=1, rows=B):
    return np.random.default_rng(seed).normal(size=(rows, T, D)).astype(np.float32)


def some_padding():
    """Behind the text of one row, before that of another."""
    real = np.ones((B, T), bool)
    real[1, 9:] = real[2, :4] = False
    return real


def expected(module, params, x, real):
    """Output, load balance and router z-loss of one sequence after the other."""
    p = {name: w.astype(np.float64) for name, w in params.items()}
    k, count_of_experts = module.experts.per_token, module.experts.number
    y = np.zeros(x.shape)
    balance, z = np.zeros(len(x)), np.zeros(len(x))

    def expert(e, token):
        h = token @ p["in"][e]
        if module.gated:
            gate = token @ p["gate"][e]
            h = h * gate / (1 + np.exp(-gate))
        else:
            h = np.maximum(h, 0)
        return h @ p["out"][e]

    for b, row in enumerate(x.astype(np.float64)):
        logits = row @ p["router"]
        normalizer = np.exp(logits).sum(-1)
        probability = np.exp(logits) / normalizer[:, None]
        chosen = np.argsort(-probability, axis=-1, kind="stable")[:, :k]
        here = np.flatnonzero(real[b])
        slots = T
        if module.experts.capacity is not None:
            share = round(module.experts.capacity * k * len(here) / count_of_experts)
            slots = min(T, max(1, share))
        taken = np.zeros(count_of_experts, int)
        for choice in range(k):
            for t in here:
                e = chosen[t, choice]
                taken[e] += 1
                if taken[e] > slots:
                    continue
                weight = probability[t, e]
                if k > 1:
                    weight = weight / probability[t, chosen[t]].sum()
                y[b, t] += weight * expert(e, row[t])
        got = np.bincount(chosen[here].ravel(), minlength=count_of_experts)
        mean = probability[here].mean(0)
        balance[b] = count_of_experts * (got / (k * len(here)) * mean).sum()
        z[b] = (np.log(normalizer[here]) ** 2).mean()
    return y, balance, z


@pytest.mark.parametrize(
    ("per_token", "capacity", "gated"),
    [
        (1, None, True),
        (3, None, False),
        (1, 1.0, False),
        (2, 0.4, True),
        (3, 1.5, True),
    ],
)
def test_a_mixture_against_float64(per_token, capacity, gated):
    module = layer(per_token, capacity, gated)
    params, x, real = random_weights(module), texts(), some_padding()
    y, router = apply(module, params, x, real)
    want_y, balance, z = expected(module, params, x, real)
    np.testing.assert_allclose(y, want_y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(router["load_balance"], balance, rtol=1e-5)
    np.testing.assert_allclose(router["router_z"], z, rtol=1e-5)


def test_what_comes_last_is_dropped_and_padding_takes_no_slot():
    # Every token goes to expert 2 first and, half as likely or less, to expert 4.
    module = layer(per_token=2, capacity=1.0)
    params = random_weights(module)
    x = np.abs(texts())
    params["router"][:] = 0
    params["router"][:, 2], params["router"][:, 4] = 2, 1
    real = some_padding()
    y, _ = apply(module, params, x, real)
    visited = np.abs(np.asarray(y)).sum(-1) > 0
    for row, mask in zip(visited, real):
        slots = round(2 * mask.sum() / E)
        assert np.flatnonzero(row).tolist() == np.flatnonzero(mask)[:slots].tolist()


def test_second_choices_give_way_to_first_ones():
    # Token t chooses expert t mod 2 first, and the other second.
    module = layer(per_token=2, capacity=0.5, num_experts=2)
    params = random_weights(module)
    x = texts(rows=1)
    x[..., 0] = np.where(np.arange(T) % 2, -1, 1)
    params["router"][:] = 0
    params["router"][0] = [1, -1]
    # Each expert has as many slots as tokens choose it first: no second choice is kept.
    assert round(0.5 * 2 * T / 2) == T // 2
    y, _ = apply(module, params, x)
    alone = layer(per_token=1, num_experts=2)
    first, _ = apply(alone, params, x)
    np.testing.assert_allclose(y, first, rtol=1e-5, atol=1e-6)


def test_capacity_for_all_is_dropless():
    dropless, roomy = layer(), layer(capacity=float(E))
    params, x, real = random_weights(dropless), texts(), some_padding()
    a, b = (apply(module, params, x, real)[0] for module in (dropless, roomy))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_padding_routes_nowhere(capacity):
    module = layer(capacity=capacity)
    params, x, real = random_weights(module), texts(), some_padding()
    other = np.where(real[..., None], x, 100 * texts(seed=2))
    a, a_router = apply(module, params, x, real)
    b, b_router = apply(module, params, other, real)
    assert not np.asarray(a)[~real].any()
    np.testing.assert_array_equal(a, b)
    jax.tree.map(np.testing.assert_array_equal, a_router, b_router)

    def total(params, x):
        y, router = module.apply({"params": params}, x, real)
        return (y**2).sum() + sum(r.sum() for r in router.values())

    weights, inputs = jax.jit(jax.grad(total, argnums=(0, 1)))(params, x)
    assert not np.asarray(inputs)[~real].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))


@pytest.mark.parametrize("capacity", [None, 0.6])
def test_how_far_a_row_is_padded_changes_nothing(capacity):
    module = layer(capacity=capacity)
    params, x = random_weights(module), texts()
    longer = np.pad(x, [(0, 0), (0, T), (0, 0)], constant_values=1.0)
    alone, _ = apply(module, params, x)
    padded, _ = apply(module, params, longer, np.arange(2 * T)[None] < T)
    np.testing.assert_allclose(padded[:, :T], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_a_sequence_is_routed_by_itself(capacity):
    module = layer(capacity=capacity)
    params, x = random_weights(module), texts()
    together, router = apply(module, params, x)
    for b in range(B):
        alone, own = apply(module, params, x[b : b + 1])
        np.testing.assert_allclose(alone[0], together[b], rtol=1e-5, atol=1e-6)
        for name in router:
            np.testing.assert_allclose(own[name][0], router[name][b], rtol=1e-6)


def test_losses_of_a_router_that_knows_nothing():
    # Switch, section 2.2: 1 is the balanced value. ST-MoE, equation 5: log(E) squared.
    module = layer()
    params = random_weights(module)
    params["router"][:] = 0
    _, router = apply(module, params, texts())
    np.testing.assert_allclose(router["load_balance"], 1, rtol=1e-6)
    np.testing.assert_allclose(router["router_z"], np.log(E) ** 2, rtol=1e-6)


DATA = MeshConfig(data=8)


# Where others' rows are gathered, tiles on a CPU are as many as if all were one's own.
@pytest.mark.parametrize(
    ("capacity", "mesh_config"),
    [
        (None, DATA),
        (None, MeshConfig(data=2, fsdp=2, tensor=2)),
        (1.0, DATA),
        (1.0, MeshConfig(data=2, expert=4)),
        (1.0, MeshConfig(data=1, fsdp=2, expert=2, tensor=2)),
    ],
)
def test_eight_devices_share_the_work(capacity, mesh_config):
    module = layer(capacity=capacity, num_experts=8)
    boxed = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, D)), None)
    alone, _ = cost(module, boxed, MeshConfig(), jax.devices()[:1])
    each, text = cost(module, boxed, mesh_config, jax.devices())
    # Not an eighth: the router and the sorting are not on every axis.
    assert each <= 1.6 * alone / 8
    if mesh_config == DATA:
        assert "all-gather" not in text


def cost(module, boxed, mesh_config, devices) -> tuple[float, str]:
    """FLOPs of one device in a pass of 16 texts forward, and its program."""
    mesh, rules = mesh_config.build(devices), mesh_config.all_rules
    specs = param_specs(logical_axes(boxed), nn.unbox(boxed), mesh, rules)

    def on(sharding, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shardings = named_shardings(specs, mesh)
    params = jax.tree.map(on, shardings, nn.unbox(boxed))
    x = on(batch_sharding(mesh, rules), jnp.zeros((16, 64, D)))
    with on_mesh(mesh, rules):
        program = jax.jit(module.apply).lower(params, x, None).compile()
    return program.cost_analysis()["flops"], program.as_text()


def test_experts_have_biases_only_if_the_config_says_so():
    # A decoder with other biases, as by default, has had none of experts always.
    def names(**options):
        c = TransformerConfig(1, D, 1, experts=Experts(E, 2), **options)
        shapes = abstract_variables(CausalLM(GPT(c, 8, 8)))[1]["params"]
        return set(shapes["stack"]["layers"]["mlp"])

    assert names() == {"router", "in", "out"}
    assert names(mlp_bias=True) - names() == {"router_bias", "in_bias", "out_bias"}
