"""Runs steps of an objective on a mesh, for tests that compare meshes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Cosine
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.sharding.rules import named_shardings, param_specs
from fmjax.training.accumulation import accumulate
from fmjax.training.adversary import Adversary
from fmjax.training.state import State, abstract_variables, plan_state
from fmjax.training.step import example_keys, make_train_step

STEPS = 20
OPTIMIZER = AdamW(schedule=Cosine(learning_rate=1e-3, warmup_steps=5))
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=4, tensor=2),
    "data_fsdp_tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}


@dataclasses.dataclass
class Result:
    losses: np.ndarray
    gradients: dict[str, np.ndarray]
    state: object


def run_steps(
    objective,
    batch: Callable[[int], dict[str, np.ndarray]],
    mesh_config: MeshConfig | None,
    microbatches: int = 1,
    steps: int = STEPS,
) -> Result:
    """Gradients of the first batch, losses of training steps; None is one device."""
    mesh, rules = build(mesh_config)
    plan = plan_state(
        objective,
        OPTIMIZER,
        mesh,
        rules,
        train_steps=STEPS,
        optimizer_rules=mesh_config and mesh_config.optimizer_rules,
    )
    state = plan.init()
    first, gradients = gradients_of(
        objective, batch(0), mesh_config, microbatches, state
    )
    step = make_train_step(
        objective,
        plan,
        lambda s: OPTIMIZER.learning_rate(s, STEPS),
        mesh,
        rules,
        seed=0,
        microbatches=microbatches,
    )
    losses = []
    with on_mesh(mesh, rules):
        for i in range(steps):
            data = global_batch(
                batch(i), batch_sharding(mesh, rules), rows_of(batch(i))
            )
            state, metrics = step(state, data)
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[0], first, rtol=1e-6)
    return Result(np.array(losses), gradients, state)


def gradients_of(
    objective,
    batch: dict[str, np.ndarray],
    mesh_config: MeshConfig | None,
    microbatches: int = 1,
    state: State | None = None,
    adversary: Adversary | None = None,
    trained: Any = None,
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a batch and its gradients by name, from `state` or random numbers.

    `trained` are the parameters to differentiate, as for `accumulate`; None for all.
    """
    mesh, rules = build(mesh_config)
    if state is None:
        state = random_state(objective, mesh, rules)
    rows = rows_of(batch)

    @jax.jit
    def gradients(state, data, trained):
        keys = example_keys(0, state.step, rows)
        return accumulate(
            objective, state, data, keys, microbatches, trained, adversary=adversary
        )[:2]

    with on_mesh(mesh, rules):
        data = global_batch(batch, batch_sharding(mesh, rules), rows)
        grads, metrics = gradients(state, data, trained)
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(grads))
    named = {jax.tree_util.keystr(path): leaf for path, leaf in named}
    return float(metrics["loss"]), named


def build(mesh_config: MeshConfig | None):
    """The mesh, one device for None, and its rules."""
    devices = jax.devices() if mesh_config else jax.devices()[:1]
    mesh_config = mesh_config or MeshConfig()
    return mesh_config.build(devices), mesh_config.all_rules


def random_state(objective, mesh, rules) -> State:
    """Parameters from NumPy, on the mesh: an initializer would take long to compile."""
    axes, shapes = abstract_variables(objective)
    shardings = named_shardings(param_specs(axes, shapes, mesh, rules), mesh)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.1, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    variables = jax.device_put(variables, shardings)
    return State(jax.device_put(np.int32(0)), variables.pop("params"), variables, None)


def packed_rows(rng, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and positions [rows, length] of two packed texts and padding."""
    at = np.arange(length)
    cut = rng.integers(2, length - 2, (rows, 1))
    end = cut + rng.integers(1, length, (rows, 1))
    segments = np.where(at < cut, 1, np.where(at < end, 2, 0)).astype(np.int32)
    positions = np.where(at < cut, at, at - cut).astype(np.int32)
    return segments, positions


def rows_of(batch: dict[str, np.ndarray]) -> int:
    """Rows of a global batch."""
    return len(next(iter(batch.values())))


def assert_same(a: Result, b: Result) -> None:
    """Losses to 1e-5, each gradient to 1e-5 of its norm."""
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-5)
    assert_same_gradients(a.gradients, b.gradients)


def assert_same_gradients(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Each to 1e-5 of its norm."""
    whole = np.sqrt(sum(np.linalg.norm(g) ** 2 for g in a.values()))
    for name, gradient in a.items():
        size = np.linalg.norm(gradient)
        if size < 1e-7 * whole:
            # Nought but rounding: softmax does not see an offset of the keys.
            assert np.linalg.norm(b[name]) < 1e-7 * whole, name
            continue
        assert np.linalg.norm(gradient - b[name]) <= 1e-5 * size, name
