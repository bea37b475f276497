"""Adapters on frozen and coded weights train the same on every mesh."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from on_meshes import (
    MESHES,
    assert_same_gradients,
    build,
    gradients_of,
    packed_rows,
)
from tiers import slow

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.peft.bottleneck import Bottleneck
from fmjax.optim.peft.coding import Int8, NormalFloat4
from fmjax.optim.peft.ia3 import IA3
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.p_tuning import PTuning
from fmjax.optim.peft.peft import Peft
from fmjax.optim.peft.prefix import Prefix
from fmjax.optim.peft.prompt import Prompt
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
# Beside those above, whose gradients are compared one by one. BitFit trains biases.
BIASED = dataclasses.replace(CONFIG, bias=True)
MORE = {
    "int8": Peft(methods=(LoRA(paths=ALL, dropout=0.3),), coding=Int8()),
    "prefix": Peft(methods=(Prefix(3),)),
    "prompt": Peft(methods=(Prompt(3, init="normal"),)),
    "p-tuning": Peft(methods=(PTuning(3, hidden_dim=24),)),
    "houlsby": Peft(methods=(Bottleneck(reduction=8),)),
    "pfeiffer": Peft(methods=(Bottleneck("pfeiffer", reduction=8),)),
    "bitfit": Peft(trained=("**/*bias",)),
    "many": Peft(
        methods=(
            LoRA(dropout=0.3, dora=True),
            Prefix(3),
            PTuning(3),
            Bottleneck(reduction=8),
        ),
        trained=("**/*bias",),
        coding=NormalFloat4(),
    ),
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
    objective, plan, state, mesh, rules = begun(config, peft, mesh_config)
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


def begun(config, peft, mesh_config):
    """An objective, and the plan and first state of its training on a mesh."""
    objective = CausalLM(
        GPT(config, vocab_size=V, max_length=T, positions="none", vocab_multiple=64)
    )
    mesh, rules = build(mesh_config)
    plan = plan_state(objective, OPTIMIZER, mesh, rules, train_steps=STEPS, peft=peft)
    state = plan.init()
    state = dataclasses.replace(state, params=drawn(objective, plan, state.params))
    return objective, plan, state, mesh, rules


def gradients(config, peft, mesh_config):
    """The loss of a batch, and the gradient of each parameter that is trained."""
    objective, plan, state, _, _ = begun(config, peft, mesh_config)
    trained = plan.freezing.partition(state.params, 0)
    return gradients_of(objective, batch(0), mesh_config, 1, state, trained=trained)


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


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["lora", "dora on nf4"])
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


@pytest.mark.parametrize(
    ("peft", "mesh"),
    [
        ("many", "data_fsdp_tensor"),
        *(slow(peft, mesh) for peft in [*PEFT, *MORE] for mesh in MESHES),
    ],
)
def test_each_gradient_is_that_of_one_device(peft, mesh):
    method = (PEFT | MORE)[peft]
    config = BIASED if "**/*bias" in method.trained else WIDE
    loss, wanted = gradients(config, method, None)
    found, sharded = gradients(config, method, MESHES[mesh])
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    assert len(wanted) > 0
    assert all(gradient.any() for gradient in wanted.values())
    assert_same_gradients(sharded, wanted)


def test_averages_are_kept_of_adapters_alone():
    decay, (mesh, rules) = 0.9, build(None)
    objective = CausalLM(GPT(CONFIG, vocab_size=V, max_length=T, positions="none"))
    plan = plan_state(
        objective,
        OPTIMIZER,
        mesh,
        rules,
        train_steps=STEPS,
        peft=Peft(methods=(LoRA(),), base_dtype="bfloat16"),
        ema=True,
    )
    step = make_train_step(
        objective, plan, lambda s: 1e-2, mesh, rules, seed=0, ema_decay=decay
    )
    state = plan.init()
    params, average = (flat(tree) for tree in (state.params, state.ema))
    base = params.keys() - average.keys()
    assert base == plan.peft.never_trained.keys()
    wanted = {path: array.astype(np.float64) for path, array in average.items()}
    with on_mesh(mesh, rules):
        for i in range(STEPS):
            placed = global_batch(batch(i), batch_sharding(mesh, rules), B)
            state, _ = step(state, placed, 0)
            now = flat(state.params)
            for path in wanted:
                wanted[path] = decay * wanted[path] + (1 - decay) * now[path]
    evaluated = flat(state.eval_variables["params"])
    for path, expected in wanted.items():
        np.testing.assert_allclose(evaluated[path], expected, rtol=1e-5, atol=1e-7)
        assert np.abs(now[path] - expected).max() > 1e-3
    for path in base:
        np.testing.assert_array_equal(evaluated[path], params[path])


def flat(tree):
    """The arrays of a tree of parameters on the host, by path."""
    leaves = traverse_util.flatten_dict(tree, sep="/")
    masked = optax.MaskedNode
    return {
        p: jax.device_get(x) for p, x in leaves.items() if not isinstance(x, masked)
    }
