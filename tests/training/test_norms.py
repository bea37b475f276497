"""Norms of modules against NumPy, from gradients and updates that optax makes apart."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from on_meshes import MESHES, build
from tiers import slow

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.terms import total
from fmjax.optim.freezing import Freeze, plan_freezing
from fmjax.optim.optimizers import Adafactor, AdamW, Lamb, Muon
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.training.bad_steps import BadSteps
from fmjax.training.norms import Norms
from fmjax.training.state import abstract_variables, plan_state
from fmjax.training.step import make_train_step

V, T, B, LAYERS, STEPS = 64, 8, 16, 2, 2
CONFIG = TransformerConfig(num_layers=LAYERS, embed_dim=32, num_heads=4, bias=False)
CONFIG = dataclasses.replace(CONFIG, dtype="float32")
OBJECTIVE = CausalLM(GPT(CONFIG, V, T, tie_embeddings=False))
UNROLLED = CausalLM(
    GPT(dataclasses.replace(CONFIG, scan_layers=False), V, T, tie_embeddings=False)
)
SCHEDULE = Constant(learning_rate=1e-2)
ADAMW = AdamW(schedule=SCHEDULE)
OPTIMIZERS = {
    "adamw": ADAMW,
    "adafactor": Adafactor(schedule=SCHEDULE, min_dim_size_to_factor=8),
    "lamb": Lamb(schedule=SCHEDULE),
    "muon": Muon(schedule=SCHEDULE),
}
# XLA's own settings, which those of the tests replace.
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}
# Of a layer, and outside of layers, by group.
OF_LAYER = {
    "attention": ("query", "key", "value", "out"),
    "attention_norm": ("scale",),
    "mlp": ("in", "out"),
    "mlp_norm": ("scale",),
}
OTHERS = {
    "tokens": ("table",),
    "inputs/positions": ("table",),
    "stack/final_norm": ("scale",),
    "language_head": ("kernel",),
}
FREEZE = (
    Freeze(paths=("stack/layers/attention/**",), until=1),
    Freeze(paths=("tokens/**",)),
)


def batch(step):
    rng = np.random.default_rng(step)
    ids = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    weights = (np.arange(T) < rng.integers(1, T + 1, (B, 1))).astype(np.float32)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def measured(optimizer=ADAMW, mesh_config=None, microbatches=1, by="layers", **options):
    """Figures of each step, and the last parameters; `by` None measures nothing."""
    objective = options.pop("objective", OBJECTIVE)
    compiler_options = options.pop("compiler_options", None)
    mesh, rules = build(mesh_config)
    plan = plan_state(
        objective,
        optimizer,
        mesh,
        rules,
        train_steps=STEPS,
        optimizer_rules=mesh_config and mesh_config.optimizer_rules,
        **options,
    )
    norms = by and Norms(by, plan.shapes.params, plan.freezing)
    step = make_train_step(
        objective,
        plan,
        lambda _: 1e-2,
        mesh,
        rules,
        seed=0,
        microbatches=microbatches,
        norms=norms,
        compiler_options=compiler_options,
    )
    state, found = plan.init(), []
    with on_mesh(mesh, rules):
        for i in range(STEPS):
            data = global_batch(batch(i), batch_sharding(mesh, rules), B)
            state, metrics = step(state, data, plan.freezing.phase(i))
            if norms:
                assert metrics["norms"].sharding.is_fully_replicated
                found.append(norms.figures(jax.device_get(metrics["norms"])))
    return found, jax.device_get(state.params)


@functools.cache
def steps_apart(name, freeze=()):
    """(gradients, parameters before, after) of steps that optax makes on one device."""
    mesh, rules = build(None)
    plan = plan_state(
        OBJECTIVE, OPTIMIZERS[name], mesh, rules, train_steps=STEPS, freeze=freeze
    )
    params = jax.device_get(plan.init().params)
    state, found = plan.transformation.init(params), []
    first_steps = plan.freezing.first_steps

    @jax.jit
    def gradient(params, batch):
        return jax.grad(
            lambda p: total(OBJECTIVE.loss({"params": p}, batch, None).terms)
        )(params)

    for i in range(STEPS):
        grads = gradient(params, batch(i))

        def part(tree, i=i):
            return jax.tree.map(
                lambda first, x: x if first <= i else optax.MaskedNode(),
                first_steps,
                tree,
            )

        updates, state = plan.transformation.update(part(grads), state, part(params))
        after = jax.tree.map(
            lambda p, u: p if isinstance(u, optax.MaskedNode) else p + u,
            params,
            updates,
        )
        shown = jax.tree.map(
            lambda first, g, i=i: g if first <= i else np.zeros_like(g),
            first_steps,
            grads,
        )
        found.append(
            tuple(
                {
                    path: np.asarray(leaf, np.float64)
                    for path, leaf in traverse_util.flatten_dict(t, sep="/").items()
                }
                for t in (shown, params, after)
            )
        )
        params = after
    return found


def expected(grads, before, after, by="layers", never=()):
    """The figures of a step, from arrays by path."""
    update = {path: after[path] - before[path] for path in before}
    kinds = {"grad_norm": grads, "update_norm": update, "param_norm": before}
    figures = {}

    def add(group, paths, index):
        norms = {
            kind: np.sqrt(sum((arrays[path][index] ** 2).sum() for path in paths))
            for kind, arrays in kinds.items()
        }
        for kind, norm in norms.items():
            figures[f"{kind}/{group}"] = norm
        ratio = norms["update_norm"] / norms["param_norm"]
        figures[f"update_ratio/{group}"] = ratio

    for group, names in OTHERS.items():
        if group not in never:
            add(group, [f"{group}/{name}" for name in names], ...)
    for group, names in OF_LAYER.items():
        paths = [f"stack/layers/{group}/{name}" for name in names]
        if by == "modules":
            add(f"stack/layers/{group}", paths, ...)
        else:
            for i in range(LAYERS):
                add(f"stack/layer_{i}/{group}", paths, i)
    return figures


def assert_same(found, want, rtol=1e-4):
    assert found.keys() == want.keys()
    for name, figure in want.items():
        np.testing.assert_allclose(found[name], figure, rtol, 1e-9, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", *map(slow, ("muon", "adafactor", "lamb"))])
def test_norms_of_layers_are_those_of_steps_that_optax_makes_apart(name):
    found, _ = measured(OPTIMIZERS[name])
    for step, figures in zip(steps_apart(name), found, strict=True):
        assert_same(figures, expected(*step))


@pytest.mark.parametrize(
    ("mesh_config", "microbatches", "by", "name"),
    [
        (MESHES["data_fsdp_tensor"], 2, "modules", "adamw"),
        slow(MeshConfig(data=4, tensor=2, zero1=True), 1, "layers", "adamw"),
        slow(MESHES["data_fsdp_tensor"], 1, "layers", "muon"),
    ],
    ids=["microbatches", "zero1", "muon"],
)
def test_norms_are_the_same_on_a_mesh(mesh_config, microbatches, by, name):
    found, _ = measured(OPTIMIZERS[name], mesh_config, microbatches, by)
    for step, figures in zip(steps_apart(name), found, strict=True):
        assert_same(figures, expected(*step, by=by))


def test_layers_that_are_not_scanned_have_the_same_groups():
    def shapes(objective):
        return abstract_variables(objective)[1]["params"]

    for by in ("layers", "modules"):
        scanned, unrolled = (
            Norms(by, params, plan_freezing((), params))
            for params in map(shapes, (OBJECTIVE, UNROLLED))
        )
        assert sorted(scanned.groups) == sorted(unrolled.groups)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape), shapes(UNROLLED))
    found = jax.device_get(unrolled.measure(params, params, params))
    found = unrolled.figures(found)
    size = LAYERS * sum(
        leaf.size for leaf in params["stack"]["layer_0"]["mlp"].values()
    )
    assert found["param_norm/stack/layers/mlp"] == pytest.approx(np.sqrt(size))


def test_frozen_parameters_are_zero_and_those_frozen_for_ever_in_no_group():
    found, _ = measured(freeze=FREEZE)
    apart = steps_apart("adamw", FREEZE)
    for step, figures in zip(apart, found, strict=True):
        assert_same(figures, expected(*step, never=("tokens",)))
    assert found[0]["update_norm/stack/layer_0/attention"] == 0
    assert found[1]["update_norm/stack/layer_0/attention"] > 0


def test_the_update_of_a_step_that_is_skipped_is_zero():
    skips = BadSteps(not_finite="skip")
    bad = dataclasses.replace(SCHEDULE, learning_rate=1e30)
    found, _ = measured(AdamW(schedule=bad), bad_steps=skips)
    assert found[0]["update_norm/tokens"] > 0
    assert found[1]["update_norm/tokens"] == 0


@pytest.mark.parametrize("mesh", [None, slow("data_fsdp_tensor")])
@pytest.mark.parametrize("name", ["adamw", *map(slow, ("adafactor", "lamb", "muon"))])
def test_measuring_changes_no_bit_of_the_parameters(name, mesh):
    run = (OPTIMIZERS[name], MESHES.get(mesh))
    _, with_norms = measured(*run, by="layers", compiler_options=AS_USERS)
    _, without = measured(*run, by=None, compiler_options=AS_USERS)
    jax.tree.map(np.testing.assert_array_equal, with_norms, without)


def test_a_module_of_nothing_but_zeros_has_no_ratio():
    shapes = {"a": {"bias": np.zeros(3, np.float32)}}
    norms = Norms("modules", shapes, plan_freezing((), shapes))
    figures = norms.figures(np.array([[1.0, 2.0, 0.0]]))
    assert figures["grad_norm/a"] == 1
    assert np.isnan(figures["update_ratio/a"])
