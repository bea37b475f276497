"""The same config gives the same losses and gradients on every mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from on_meshes import (
    MESHES,
    OPTIMIZER,
    STEPS,
    assert_same,
    assert_same_gradients,
    gradients_of,
    run_steps,
)
from tiers import slow

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

V, T, B = 60, 12, 16
CONFIG = TransformerConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=48,
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    bias=False,
    rotary=Rotary(10000.0),
    dropout=0.1,
    attention_dropout=0.1,
    dtype="float32",
)
OBJECTIVE = CausalLM(
    GPT(CONFIG, V, T, positions="none", tie_embeddings=False, vocab_multiple=64),
    z_loss=1e-3,
)


def batch(step: int) -> dict[str, np.ndarray]:
    """Rows of uneven padding, and packed documents."""
    rng = np.random.default_rng(step)
    ids = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    lengths = rng.integers(1, T + 1, B)
    weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
    cuts = rng.integers(1, T, B)[:, None]
    segments = np.where(np.arange(T) < cuts, 1, 2) * (weights > 0)
    positions = np.where(np.arange(T) < cuts, np.arange(T), np.arange(T) - cuts)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": weights,
        "segment_ids": segments.astype(np.int32),
        "positions": positions.astype(np.int32),
    }


def run(mesh_config, microbatches=1, objective=OBJECTIVE, steps=STEPS):
    return run_steps(objective, batch, mesh_config, microbatches, steps)


@pytest.fixture(scope="module")
def one_device():
    return run(None)


@pytest.mark.parametrize(
    "name", ["data_fsdp_tensor", *map(slow, ("data", "fsdp", "tensor"))]
)
def test_eight_devices_compute_what_one_does(name, one_device):
    assert_same(one_device, run(MESHES[name]))


def test_parameters_and_optimizer_state_are_sharded():
    state = run(MESHES["data_fsdp_tensor"], steps=1).state
    query = state.params["stack"]["layers"]["attention"]["query"]
    assert query.sharding.shard_shape(query.shape) == (2, 16, 2, 8)
    adam = [
        leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == query.shape
    ]
    assert adam
    assert all(leaf.sharding == query.sharding for leaf in adam)


def test_zero1_shards_the_state_of_the_optimizer_and_changes_nothing(one_device):
    mesh = MeshConfig(data=4, tensor=2, zero1=True)
    state = run(mesh)
    assert_same(one_device, state)
    query = state.state.params["stack"]["layers"]["attention"]["query"]
    assert query.sharding.shard_shape(query.shape) == (2, 32, 2, 8)
    moments = [
        leaf
        for leaf in jax.tree.leaves(state.state.opt_state)
        if leaf.shape == query.shape
    ]
    assert len(moments) == 2
    for leaf in moments:
        assert leaf.sharding.shard_shape(leaf.shape) == (2, 8, 2, 8)


@pytest.mark.parametrize("name", [slow(None), "data_fsdp_tensor"])
def test_accumulation_equals_one_big_batch(name, one_device):
    # Dropout is on and padding uneven, so every microbatch has another weight.
    assert_same(one_device, run(MESHES.get(name), microbatches=2))


def test_accumulation_with_terms_of_different_weights():
    objective = TwoTerms(OBJECTIVE.model)
    loss, gradients = gradients_of(objective, batch(0), None)
    found, same = gradients_of(objective, batch(0), None, microbatches=4)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_same_gradients(gradients, same)


def test_averaged_parameters():
    mesh_config = MeshConfig()
    mesh, rules = mesh_config.build(), mesh_config.all_rules
    plan = plan_state(OBJECTIVE, OPTIMIZER, mesh, rules, train_steps=STEPS, ema=True)
    step = make_train_step(
        OBJECTIVE, plan, lambda s: 0.0, mesh, rules, seed=0, ema_decay=0.75
    )
    state = plan.init()
    want = jax.device_get(state.params)
    with on_mesh(mesh, rules):
        for i in range(3):
            placed = global_batch(batch(i), batch_sharding(mesh, rules), B)
            state, _ = step(state, placed)
            now = jax.device_get(state.params)
            want = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, want, now)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        want,
        jax.device_get(state.ema),
    )
    evaluated = state.eval_variables["params"]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, evaluated, state.ema)))


@dataclasses.dataclass(frozen=True)
class TwoTerms(CausalLM):
    """The language model, and a term of its own denominator over the first tokens."""

    def loss(self, variables, data, rng):
        out = super().loss(variables, data, rng)
        other = super().loss(variables, self._first(data), rng)
        term = other.terms["cross_entropy"]._replace(coefficient=0.5)
        return out._replace(terms=out.terms | {"first": term})

    def weights(self, data):
        return super().weights(data) | {"first": self._first(data)["weights"].sum()}

    def _first(self, data):
        return data | {"weights": data["weights"] * (data["tokens"] < V // 3)}
