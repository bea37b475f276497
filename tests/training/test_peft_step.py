"""Adapters on frozen and coded weights train the same on every mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util
from on_meshes import MESHES, build, packed_rows
from tiers import slow

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.peft.coding import NormalFloat4
from fmjax.optim.peft.ia3 import IA3
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.peft import Peft
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import batch_sharding, global_batch, on_mesh
from fmjax.training.state import abstract_variables, plan_state
from fmjax.training.step import make_train_step

V, T, B, STEPS = 60, 12, 16, 3
CONFIG = TransformerConfig(
    num_layers=2,
    embed_dim=128,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=256,
    gated_mlp=True,
    bias=False,
    rotary=Rotary(1e4),
    dropout=0.1,
    dtype="float32",
)
# Of 512 inputs there are eight blocks, one for each device.
WIDE = dataclasses.replace(CONFIG, embed_dim=512)
EXPERTS = dataclasses.replace(WIDE, experts=Experts(4), mlp_dim=128)
OPTIMIZER = AdamW(schedule=Constant(learning_rate=1e-2))
ALL = ("**/*attention/*", "**/mlp/in", "**/mlp/gate", "**/mlp/out")
PEFT = {
    "lora": Peft(methods=(LoRA(paths=ALL, dropout=0.3, b_rate=4.0),)),
    "dora on nf4": Peft(methods=(LoRA(paths=ALL, dora=True),), coding=NormalFloat4()),
    "ia3": Peft(methods=(IA3(),), trained=("stack/final_norm/*",)),
}


def batch(step):
    rng = np.random.default_rng(step)
    tokens = rng.integers(5, V, (B, T + 1)).astype(np.int32)
    segments, positions = packed_rows(rng, B, T)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (segments > 0).astype(np.float32),
        "segment_ids": segments,
        "positions": positions,
    }


def trained(config, peft, mesh_config, microbatches=1):
    """Losses and norms of gradients of steps, and the trained parameters after them."""
    objective = CausalLM(
        GPT(config, vocab_size=V, max_length=T, positions="none", vocab_multiple=64)
    )
    mesh, rules = build(mesh_config)
    plan = plan_state(objective, OPTIMIZER, mesh, rules, train_steps=STEPS, peft=peft)
    state = plan.init()
    state = dataclasses.replace(state, params=drawn(objective, plan, state.params))
    step = make_train_step(
        objective, plan, lambda s: 1e-2, mesh, rules, seed=0, microbatches=microbatches
    )
    losses, norms = [], []
    with on_mesh(mesh, rules):
        for i in range(STEPS):
            placed = global_batch(batch(i), batch_sharding(mesh, rules), B)
            state, metrics = step(state, placed, 0)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    return losses, norms, jax.device_get(plan.freezing.partition(state.params, 0))


def drawn(objective, plan, params):
    """A base from NumPy, and adapters that are not zero, in the same shardings."""
    rng = np.random.default_rng(0)
    _, shapes = abstract_variables(objective)
    base = {
        path: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in traverse_util.flatten_dict(shapes["params"], sep="/").items()
    }
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    for path, leaf in flat.items():
        if path in plan.peft.added and plan.peft.added[path].trained:
            noise = 0.1 * rng.normal(size=leaf.shape)
            flat[path] = (leaf + noise).astype(np.float32)
    for path in plan.peft.coded:
        flat |= plan.peft.encode(path, base.pop(path))
    flat |= base
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    return jax.device_put(traverse_util.unflatten_dict(flat, sep="/"), where)


def assert_same(found, wanted):
    for a, b in zip(found[:2], wanted[:2]):
        np.testing.assert_allclose(a, b, rtol=2e-5)
    # Adam's first updates are signs of gradients, of which some are but rounding.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=2e-3),
        found[2],
        wanted[2],
    )


@pytest.mark.parametrize("peft", [slow("lora"), "dora on nf4"])
def test_a_mesh_and_microbatches_compute_what_one_device_does(peft):
    wanted = trained(CONFIG, PEFT[peft], None)
    mesh = MESHES["data_fsdp_tensor"]
    assert_same(trained(CONFIG, PEFT[peft], mesh, microbatches=2), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    ("config", "peft"),
    [*((WIDE, peft) for peft in PEFT), (EXPERTS, "lora"), (EXPERTS, "dora on nf4")],
)
def test_every_mesh_computes_what_one_device_does(config, peft, mesh):
    wanted = trained(config, PEFT[peft], None)
    assert_same(trained(config, PEFT[peft], MESHES[mesh]), wanted)
