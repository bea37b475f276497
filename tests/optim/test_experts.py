"""Stacked experts get the updates that each expert would get as a layer of its own."""

import jax
import numpy as np
import optax
import pytest
from tiers import slow

from fmjax.optim import axes, optimizers, schedules

LAYERS, EXPERTS = 2, 3
SCHEDULE = schedules.Constant(learning_rate=1e-2)
OPTIMIZERS = {
    "adamw": optimizers.AdamW(schedule=SCHEDULE),
    "adafactor": optimizers.Adafactor(
        schedule=SCHEDULE, min_dim_size_to_factor=4, weight_decay=0.1
    ),
    "lamb": optimizers.Lamb(schedule=SCHEDULE),
    "lion": optimizers.Lion(schedule=SCHEDULE),
    "muon": optimizers.Muon(schedule=SCHEDULE),
}
SIZES = {"layers": LAYERS, "expert": EXPERTS, "embed": 8, "mlp": 6}
EXPERT = {"in": ("embed", "mlp"), "out": ("mlp", "embed")}
ROUTER = ("embed", "expert")


def map_names(function, tree):
    return jax.tree.map(function, tree, is_leaf=lambda x: isinstance(x, tuple))


def stacked(*names):
    return {"mlp": map_names(lambda inner: (*names, *inner), EXPERT)}


UNROLLED = {
    "router": ROUTER,
    **{f"{i}_{e}": EXPERT for i in range(LAYERS) for e in range(EXPERTS)},
}
LAYOUTS = {
    "scanned": stacked("layers", "expert"),
    "unrolled": {f"layer_{i}": stacked("expert")["mlp"] for i in range(LAYERS)},
}


def random(seed):
    """Weights of each expert alone, each of another size than the others."""
    rng = np.random.default_rng(seed)
    tree = map_names(lambda names: rng.normal(size=[SIZES[n] for n in names]), UNROLLED)
    for i in range(LAYERS):
        for e in range(EXPERTS):
            for leaf in tree[f"{i}_{e}"].values():
                leaf *= 10.0 ** (i - e)
    return tree


def stack(tree, layout):
    """The experts of `random`, stacked."""
    layers = [
        jax.tree.map(
            lambda *x: np.stack(x), *(tree[f"{i}_{e}"] for e in range(EXPERTS))
        )
        for i in range(LAYERS)
    ]
    if layout == "unrolled":
        found = {f"layer_{i}": layer for i, layer in enumerate(layers)}
    else:
        found = {"mlp": jax.tree.map(lambda *x: np.stack(x), *layers)}
    return {"router": tree["router"], **found}


def updates(optimizer, names, params, gradients):
    transformation = optimizer.build(names, 10)
    state, found = transformation.init(params), []
    for gradient in gradients:
        update, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        found.append(update)
    return found


@pytest.mark.parametrize("layout", ["scanned", slow("unrolled")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_experts_get_the_updates_of_each_expert_alone(name, layout):
    with jax.enable_x64(True):
        optimizer, params = OPTIMIZERS[name], random(0)
        gradients = [random(1), random(2)]
        alone = updates(optimizer, UNROLLED, params, gradients)
        together = updates(
            optimizer,
            {"router": ROUTER, **LAYOUTS[layout]},
            stack(params, layout),
            [stack(gradient, layout) for gradient in gradients],
        )
        for found, each in zip(together, alone, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
                found,
                stack(jax.device_get(each), layout),
            )


@pytest.mark.parametrize("stack", [(), ("layers",)])
def test_experts_are_hidden_matrices_and_a_router_is_a_matrix_of_its_own(stack):
    for inner in EXPERT.values():
        names = (*stack, "expert", *inner)
        assert axes.is_hidden_matrix(names)
        first = len(stack) + 1
        assert axes.sides(names) == ((first,), (first + 1,))
    router = (*stack, *ROUTER)
    assert axes.is_matrix(router)
    assert not axes.is_hidden_matrix(router)
