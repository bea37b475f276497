"""Too little memory is told in bytes, before compiling where that can be known."""

import jax
import jax.numpy as jnp
import pytest

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig
from fmjax.training import memory
from fmjax.training.state import plan_state


def plan(config, mlp_dim=64):
    transformer = TransformerConfig(
        num_layers=2, embed_dim=16, num_heads=2, mlp_dim=mlp_dim
    )
    objective = CausalLM(GPT(transformer, vocab_size=50, max_length=8))
    mesh = config.build()
    optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
    rules = config.all_rules
    return plan_state(objective, optimizer, mesh, rules, train_steps=5), mesh


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_bytes_of_a_planned_state_are_those_of_the_made_one(config):
    made, mesh = plan(config)
    state = made.init()
    for device in mesh.devices.flat:
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert memory.bytes_per_device(made.shapes) == held


def test_a_state_beyond_all_memory_is_refused_before_it_is_made():
    config = MeshConfig()
    memory.check_memory(*plan(config))
    # 2 layers × (16 + 16 + 1) × 10¹⁰ floats, twice more for Adam, and gradients.
    with pytest.raises(UserError, match=r"10,560\.0 GB on each .* mesh\.fsdp"):
        memory.check_memory(*plan(config, mlp_dim=10**10))


def test_running_out_of_memory_is_told_with_the_bytes_asked_for():
    made, _ = plan(MeshConfig())
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        jnp.ones(1 << 46, jnp.float32).block_until_ready()
    told = str(memory.out_of_memory(raised.value, made))
    assert f"({4 << 46} bytes were asked for)" in told
    for name in ("train.microbatches", "transformer.remat", "mesh.fsdp"):
        assert name in told
    assert isinstance(memory.out_of_memory(MemoryError(), made), UserError)
    assert memory.out_of_memory(ValueError("shapes"), made) is None
