"""Frozen parameters in a dtype of their own: in memory, in checkpoints, on meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_meshes import build
from safetensors.numpy import load_file

import fmjax
from fmjax.config.render import render
from fmjax.errors import UserError
from fmjax.interop.export import export_model
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.freezing import Freeze
from fmjax.optim.optimizers import AdamW
from fmjax.optim.parametrization import combine
from fmjax.optim.schedules import Constant
from fmjax.run import directory
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.copy_plan import Source, plan_copies
from fmjax.training.init_from import InitFrom
from fmjax.training.memory import bytes_per_device
from fmjax.training.start_from import start_from
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

V, T, B, STEPS = 50, 8, 8, 3
CONFIG = TransformerConfig(num_layers=2, embed_dim=16, num_heads=2, dtype="float32")
OBJECTIVE = CausalLM(GPT(CONFIG, V, T, vocab_multiple=16, tie_embeddings=False))
OPTIMIZER = AdamW(schedule=Constant(learning_rate=1e-2))
PATHS = ("tokens/table", "stack/layers/**")
KEPT = Freeze(paths=PATHS, dtype="bfloat16")


def plan(*freeze, mesh_config=None, ema=True):
    mesh, rules = build(mesh_config)
    return plan_state(
        OBJECTIVE, OPTIMIZER, mesh, rules, train_steps=STEPS, ema=ema, freeze=freeze
    )


def batch(step):
    ids = np.random.default_rng(step).integers(0, V, (B, T + 1)).astype(np.int32)
    weights = np.ones((B, T), np.float32)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def train(made, state, begin=0, mesh_config=None):
    """The last state, and the loss of each step."""
    mesh, rules = build(mesh_config)
    step = make_train_step(
        OBJECTIVE, made, lambda s: 1e-2, mesh, rules, seed=0, ema_decay=0.9
    )
    losses = []
    with on_mesh(mesh, rules):
        for i in range(begin, STEPS):
            placed = global_batch(batch(i), batch_sharding(mesh, rules), B)
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]))
    return state, losses


def frozen(params):
    """Of the table, the rows that no padding of the vocabulary added."""
    return {"table": params["tokens"]["table"][:V], "layers": params["stack"]["layers"]}


def rounded(tree):
    """To the nearest bfloat16, in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), tree)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def kept():
    return plan(KEPT)


@pytest.fixture(scope="module")
def whole(kept):
    return train(kept, kept.init())


@pytest.fixture(scope="module")
def run(kept, tmp_path_factory):
    """A run directory with the state after no step."""
    folder = tmp_path_factory.mktemp("run")
    experiment = fmjax.Experiment(OBJECTIVE, freeze=(KEPT,))
    directory.write(folder, render(experiment))
    save(folder, kept.init())
    return folder


def save(folder, state):
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, {}, {})
    checkpoints.wait()
    checkpoints.close()


def test_half_the_memory_and_no_average_is_kept_of_them(kept):
    every = plan(Freeze(paths=PATHS), ema=False)
    count = every.shapes.params["tokens"]["table"].size
    count += size(every.shapes.params["stack"]["layers"])
    for ema in (False, True):
        saved = bytes_per_device(every.shapes) - bytes_per_device(
            plan(KEPT, ema=ema).shapes
        )
        trained = size(every.shapes.params) - count
        assert saved == 2 * count - 4 * trained * ema
    evaluated = kept.init().eval_variables["params"]
    shapes = jax.tree.map(lambda leaf: leaf.shape, evaluated)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, every.shapes.params)


def test_losses_are_those_of_rounded_float32_parameters(whole):
    state, losses = whole
    every = plan(Freeze(paths=PATHS))
    start = every.init()
    params = start.params | {
        "tokens": rounded(start.params["tokens"]),
        "stack": start.params["stack"]
        | {"layers": rounded(start.params["stack"]["layers"])},
    }
    other, expected = train(every, dataclasses.replace(start, params=params))
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen(state.params))} == {
        jnp.dtype("bfloat16")
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b),
        frozen(state.params),
        frozen(other.params),
    )
    _, plain = train(every, every.init())
    np.testing.assert_allclose(losses, plain, rtol=1e-2)


@pytest.mark.parametrize("mesh_config", [None, MeshConfig(data=2, fsdp=2, tensor=2)])
def test_a_checkpoint_restores_their_bits_on_any_mesh(
    kept, whole, tmp_path, mesh_config
):
    state, _ = whole
    before = jax.device_get(state)
    save(tmp_path, state)
    checkpoints = Checkpoints(tmp_path)
    there = plan(KEPT, mesh_config=mesh_config)
    found = checkpoints.restore(there.shapes, STEPS).state
    with pytest.raises(UserError, match=r"should be float32 .* found bfloat16"):
        checkpoints.restore(plan(Freeze(paths=PATHS)).shapes, STEPS)
    with pytest.raises(UserError, match=r"freeze\.dtype .* experiment\.init_from"):
        checkpoints.restore(plan().shapes, STEPS)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), before)
    shapes = jax.tree.map(lambda leaf: (leaf.dtype, leaf.sharding), found.params)
    wanted = jax.tree.map(lambda leaf: (leaf.dtype, leaf.sharding), there.shapes.params)
    assert shapes == wanted


def test_a_resumed_run_ends_with_the_same_bits(kept, whole, run):
    checkpoints = Checkpoints(run)
    state, _ = train(kept, checkpoints.restore(kept.shapes, 0).state)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((state, whole[0])))


def test_a_run_that_kept_them_loads_and_is_exported(kept, run, tmp_path):
    params = kept.init().params
    table = np.asarray(params["tokens"]["table"].astype(jnp.float32))
    loaded = fmjax.load(run)
    assert loaded.params["tokens"]["table"].dtype == jnp.bfloat16
    assert loaded.params["language_head"]["kernel"].dtype == jnp.float32
    assert np.isfinite(loaded(tokens=[[1, 2, 3]])["logits"]).all()
    plain = fmjax.load(run, dtype="float32").params["tokens"]["table"]
    np.testing.assert_array_equal(plain, table)
    export_model(run, tmp_path / "hf")
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    np.testing.assert_array_equal(exported["transformer.wte.weight"], table[:V])


def test_another_run_starts_from_them_and_they_from_another(kept, run, tmp_path):
    state = plan(ema=False).init()
    save(tmp_path, state)
    wanted = {
        run: plan(ema=True),  # bfloat16 there, float32 here
        tmp_path: plan(KEPT, ema=True),  # and the other way round
    }
    expected = rounded(frozen(state.params))
    for folder, made in wanted.items():
        source = Source(InitFrom(run=str(folder)), V, None, OBJECTIVE)
        copies = plan_copies([source], made, V)
        started = start_from(copies, made.init())
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b),
            frozen(started.params),
            expected,
        )
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, started.params)
        assert dtypes == jax.tree.map(lambda leaf: leaf.dtype, made.shapes.params)
        average = combine(started.ema, started.params)
        jax.tree.map(np.testing.assert_array_equal, average, started.params)
