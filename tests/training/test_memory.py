"""Too little memory is told in bytes, before compiling where that can be known."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import UserError, explained_out_of_memory
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.training import memory
from fmjax.training.activations import kept_bytes, traced_stacks
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step


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
    held = functools.partial(memory.describe_memory, made)
    with (
        pytest.raises(UserError) as told,
        explained_out_of_memory(memory.HELP, held),
    ):
        jnp.ones(1 << 46, jnp.float32).block_until_ready()
    assert f"out of memory ({4 << 46} bytes were asked for)." in str(told.value)
    for part in ("train.microbatches", "transformer.remat", "mesh.fsdp", "The state"):
        assert part in str(told.value)
    with (
        pytest.raises(UserError, match=r"^out of memory\.$"),
        explained_out_of_memory(),
    ):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), explained_out_of_memory():
        raise RuntimeError("shapes")


LAYERS, D, T = 6, 32, 64
DEEP = TransformerConfig(num_layers=LAYERS, embed_dim=D, num_heads=2, dtype="float32")


class Traced:
    """A step of a deep model, traced for a batch of which nothing is made."""

    def __init__(self, rows, config=None, microbatches=1, **fields):
        config = config or MeshConfig()
        transformer = dataclasses.replace(DEEP, **fields)
        objective = CausalLM(GPT(transformer, vocab_size=50, max_length=T))
        optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
        devices = jax.devices()[:1] if config == MeshConfig(data=1) else None
        self.mesh, rules = config.build(devices), config.all_rules
        self.plan = plan_state(objective, optimizer, self.mesh, rules, train_steps=5)
        step = make_train_step(
            objective,
            self.plan,
            lambda s: 1e-3,
            self.mesh,
            rules,
            seed=0,
            microbatches=microbatches,
        )
        ids = jax.ShapeDtypeStruct((rows, T), np.int32)
        weights = jax.ShapeDtypeStruct((rows, T), np.float32)
        batch = {"tokens": ids, "targets": ids, "weights": weights}
        with on_mesh(self.mesh, rules), traced_stacks() as stacks:
            self.traced = step.trace(self.plan.shapes, batch, 0)
        trained = self.plan.freezing.trained(0)
        self.kept = kept_bytes(stacks, trained, self.mesh, rules)


@pytest.mark.parametrize(
    ("config", "microbatches", "shards"),
    [
        (MeshConfig(), 1, 8),
        # Tensor parallelism shards the length between blocks.
        (MeshConfig(data=1, fsdp=4, tensor=2), 2, 8),
    ],
)
def test_activations_are_the_inputs_of_blocks_and_xla_needs_more(
    config, microbatches, shards
):
    step = Traced(32, config, microbatches, remat="full")
    assert step.kept == LAYERS * (32 // microbatches) * T * D * 4 / shards
    compiled = step.traced.lower().compile()
    assert step.kept < compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        # Of the matrices of a layer and of their optimizer's state.
        ({"data": 8}, 1),
        ({"data": 1, "fsdp": 8}, 8),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4),
        ({"data": 1, "context": 8}, 8),
        ({"data": 1, "fsdp": 2, "context": 2, "tensor": 2}, 8),
        ({"data": 2, "fsdp": 2, "stage": 2}, 4),
    ],
)
def test_devices_share_the_memory_of_a_step(sizes, share):
    rows, mesh = 16, MeshConfig(**sizes)
    step = Traced(rows, mesh, remat="full")
    layers = jax.tree.leaves(step.plan.shapes.params["stack"])
    for leaf in layers:
        if leaf.size >= LAYERS * D * D:
            held = math.prod(leaf.sharding.shard_shape(leaf.shape))
            assert leaf.size == share * held
    # What the compiled step is given: the state, and a part of the batch.
    compiled = step.traced.lower().compile().memory_analysis()
    batch = 3 * rows * T * 4
    state = memory.bytes_per_device(step.plan.shapes)
    given = compiled.argument_size_in_bytes - state
    assert batch / 8 <= given <= batch
    # What it keeps of activations, beside the batch and gradients.
    alone = Traced(rows // 8, MeshConfig(data=1), remat="full").traced
    alone = alone.lower().compile().memory_analysis()
    assert compiled.temp_size_in_bytes <= 1.5 * alone.temp_size_in_bytes


def test_blockwise_attention_of_scanned_layers_holds_no_square(monkeypatch):
    # What depends on no layer is computed once before the scan: the masks of all blocks
    # would be, which are [T, T].
    length, heads = 2048, DEEP.num_heads
    monkeypatch.setattr(f"{__name__}.T", length)
    step = Traced(1, MeshConfig(data=1), remat="full", attention="blockwise")
    text = step.traced.lower().compile().as_text()
    shapes = re.findall(r"[a-z]+\d*\[([\d,]+)\]", text)
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert largest <= heads * length * 512


def test_unrolled_layers_count_for_nothing():
    assert Traced(8, scan_layers=False).kept == 0


def test_activations_beyond_all_memory_are_refused_before_compiling():
    step = Traced(8 * 10**9)
    # 6 layers × 10⁹ rows a device × 64 × 32 × 4 bytes.
    with pytest.raises(UserError, match=r"49,152\.0 GB of activations.*microbatches"):
        memory.check_memory(step.plan, step.mesh, 0, step.kept)
