"""Scanned equals unrolled, sharded equals single-device, and where the state lies.

In float64, where the order of additions, which layouts change, leaves nothing to see.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fmjax.optim import optimizers, schedules
from fmjax.optim.state_sharding import state_specs

SCHEDULE = schedules.Cosine(learning_rate=1e-2, warmup_steps=1)
OPTIMIZERS = {
    "adamw": optimizers.AdamW(schedule=SCHEDULE),
    "adafactor": optimizers.Adafactor(
        schedule=SCHEDULE, min_dim_size_to_factor=8, weight_decay=0.1
    ),
    "lamb": optimizers.Lamb(schedule=SCHEDULE),
    "lion": optimizers.Lion(schedule=SCHEDULE),
    "muon": optimizers.Muon(schedule=SCHEDULE),
}
TRAIN_STEPS = 10

LAYERS = 2
SIZES = {
    "layers": LAYERS,
    "embed": 16,
    "heads": 4,
    "kv_heads": 2,
    "kv": 4,
    "mlp": 24,
    "vocab": 32,
    "norm": 16,
}
RULES = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
LAYER = {
    "attention": {
        "query": {"kernel": ("embed", "heads", "kv"), "bias": ("heads", "kv")},
        "key": {"kernel": ("embed", "kv_heads", "kv")},
        "out": {"kernel": ("heads", "kv", "embed")},
    },
    "mlp": {"kernel": ("embed", "mlp")},
    "norm": {"scale": ("norm",)},
}
OUTSIDE = {
    "tokens": {"embedding": ("vocab", "embed")},
    "norm": {"scale": ("norm",)},
    "head": {"kernel": ("embed", "vocab")},
}


def map_names(function, axes):
    return jax.tree.map(function, axes, is_leaf=lambda x: isinstance(x, tuple))


SCANNED = {**OUTSIDE, "layers": map_names(lambda names: ("layers", *names), LAYER)}
UNROLLED = {**OUTSIDE, **{f"layer_{i}": LAYER for i in range(LAYERS)}}
SPECS = map_names(lambda names: P(*(RULES.get(n) for n in names)), SCANNED)


def random_like(axes, seed):
    """Normal float64 arrays, each layer of another size than the others."""
    rng = np.random.default_rng(seed)

    def draw(names):
        x = rng.normal(size=[SIZES[n] for n in names])
        if names[0] == "layers":
            x *= np.geomspace(0.1, 10, LAYERS).reshape(-1, *[1] * (len(names) - 1))
        return x

    return map_names(draw, axes)


PARAMS = random_like(SCANNED, seed=0)
GRADIENTS = [random_like(SCANNED, seed=1 + i) for i in range(3)]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def unstack(scanned):
    layers = {
        f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], scanned["layers"])
        for i in range(LAYERS)
    }
    return {**{k: v for k, v in scanned.items() if k != "layers"}, **layers}


def train(transformation, params, gradients, shardings=(None, None)):
    """All updates of a few steps, and the state after them, in NumPy."""
    of_params, of_state = shardings

    @functools.partial(
        jax.jit,
        out_shardings=(of_params, of_state, of_params),
    )
    def step(gradient, state, params):
        update, state = transformation.update(gradient, state, params)
        return update, state, optax.apply_updates(params, update)

    state = transformation.init(params)
    if of_state is not None:
        state = jax.device_put(state, of_state)
    updates = []
    for gradient in gradients:
        update, state, params = step(gradient, state, params)
        updates.append(jax.device_get(update))
    return updates, state


@functools.cache
def trained_scanned(name):
    return train(OPTIMIZERS[name].build(SCANNED, TRAIN_STEPS), PARAMS, GRADIENTS)


def assert_same(found, expected):
    """Equal to 1e-12 in the norm of each leaf."""

    def compare(path, a, b):
        difference = np.linalg.norm(np.asarray(a, np.float64) - b)
        assert difference <= 1e-12 * np.linalg.norm(b), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, found, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_and_unrolled_layers_get_the_same_updates(name):
    scanned, _ = trained_scanned(name)
    unrolled, _ = train(
        OPTIMIZERS[name].build(UNROLLED, TRAIN_STEPS),
        unstack(PARAMS),
        [unstack(gradient) for gradient in GRADIENTS],
    )
    assert_same([unstack(update) for update in scanned], unrolled)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_state_gives_the_same_updates(name):
    mesh = jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    transformation = OPTIMIZERS[name].build(SCANNED, TRAIN_STEPS)

    def on_mesh(specs):
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    of_params = on_mesh(SPECS)
    of_state = on_mesh(state_specs(transformation, PARAMS, SPECS))
    sharded, state = train(
        transformation,
        jax.device_put(PARAMS, of_params),
        [jax.device_put(g, of_params) for g in GRADIENTS],
        (of_params, of_state),
    )
    alone, alone_state = trained_scanned(name)
    assert_same(sharded, alone)
    assert_same(state, alone_state)
    kernel = ("layers", "mlp", "kernel")
    for leaf in _leaves_under(state, kernel):
        if leaf.ndim == 3 and leaf.shape[1] == SIZES["embed"]:
            assert leaf.addressable_shards[0].data.shape[1] == SIZES["embed"] // 2


def _leaves_under(state, path):
    """The leaves of a state that belong to the parameter at `path`."""
    suffix = tuple(jax.tree_util.DictKey(key) for key in path)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = [leaf for where, leaf in leaves if where[-len(suffix) :] == suffix]
    assert found
    return found


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion"])
def test_moments_lie_where_their_parameters_lie(name):
    transformation = OPTIMIZERS[name].build(SCANNED, TRAIN_STEPS)
    specs = state_specs(transformation, PARAMS, SPECS)
    assert optax.tree.get(specs, "mu") == SPECS
    if name != "lion":
        assert optax.tree.get(specs, "nu") == SPECS


def test_both_parts_of_muon_lie_where_their_parameters_lie():
    transformation = OPTIMIZERS["muon"].build(SCANNED, TRAIN_STEPS)
    specs = state_specs(transformation, PARAMS, SPECS)
    parts = specs[1].inner_states
    momentum = parts["muon"].inner_state[0].mu
    adam = parts["adam"].inner_state.mu
    assert momentum["layers"]["attention"]["query"]["kernel"] == P(
        None, "fsdp", "tensor", None
    )
    assert adam["layers"]["attention"]["query"]["bias"] == P(None, "tensor", None)
    assert adam["tokens"]["embedding"] == P("tensor", "fsdp")
    for momentum_only in (momentum["tokens"], momentum["norm"], adam["layers"]["mlp"]):
        kinds = jax.tree.leaves(momentum_only, is_leaf=lambda x: True)
        assert not any(isinstance(kind, P) for kind in kinds)


def test_factored_statistics_lose_the_axis_that_they_summed_over():
    # All axes of one size: the shape does not tell which one is gone.
    axes = {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}
    params = {"kernel": jnp.zeros((4, 4, 4)), "bias": jnp.zeros((4, 4))}
    specs = {"kernel": P(None, "fsdp", "tensor"), "bias": P(None, "tensor")}
    optimizer = optimizers.Adafactor(schedule=SCHEDULE, min_dim_size_to_factor=4)
    found = state_specs(optimizer.build(axes, TRAIN_STEPS), params, specs)
    assert optax.tree.get(found, "v_row")["kernel"] == P(None, "fsdp", None)
    assert optax.tree.get(found, "v_col")["kernel"] == P(None, None, "tensor")
    assert optax.tree.get(found, "v")["bias"] == P(None, "tensor")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_specs_are_like_the_state_and_replicate_counts(name):
    transformation = OPTIMIZERS[name].build(SCANNED, TRAIN_STEPS)
    abstract = jax.eval_shape(lambda: PARAMS)
    state = jax.eval_shape(transformation.init, abstract)
    specs = state_specs(transformation, abstract, SPECS)
    assert jax.tree.structure(specs) == jax.tree.structure(state)

    def check(leaf, spec):
        assert isinstance(spec, P)
        assert len(spec) <= leaf.ndim
        if leaf.ndim < 1:
            assert spec == P()

    jax.tree.map(check, state, specs)
