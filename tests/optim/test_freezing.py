"""Frozen parameters cost and change nothing; the others train as if by themselves."""

import functools

import jax
import numpy as np
import optax
import pytest

from fmjax.errors import UserError
from fmjax.optim import optimizers, schedules
from fmjax.optim.freezing import NEVER, Freeze, Freezing, plan_freezing
from fmjax.optim.parametrization import combine
from fmjax.optim.state_sharding import state_specs

SCHEDULE = schedules.Linear(learning_rate=0.02, warmup_steps=2)
TRAIN_STEPS = 8
N = 2  # `early` is trained from here on
OPTIMIZERS = {
    "adamw": optimizers.AdamW(schedule=SCHEDULE, clip_norm=None),
    "adafactor": optimizers.Adafactor(
        schedule=SCHEDULE, min_dim_size_to_factor=4, weight_decay=0.1
    ),
    "lamb": optimizers.Lamb(schedule=SCHEDULE, clip_norm=None),
    "lion": optimizers.Lion(schedule=SCHEDULE, clip_norm=None),
    "muon": optimizers.Muon(schedule=SCHEDULE, clip_norm=None),
}
PART = {
    "query": ("layers", "embed", "heads", "kv"),
    "norm": ("layers", "norm"),
    "bias": ("heads", "kv"),
}
SIZES = {"layers": 3, "embed": 8, "heads": 2, "kv": 4, "norm": 8}
AXES = {"always": PART, "early": PART, "never": PART}


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda names: scale * rng.normal(size=[SIZES[n] for n in names]),
        AXES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = draw(0, 0.5)
GRADIENTS = [draw(i, 10.0 ** -(i % 3)) for i in range(1, 6)]
FREEZING = Freezing(
    {
        name: dict.fromkeys(PART, first)
        for name, first in {"always": 0, "early": N, "never": NEVER}.items()
    }
)


def to_float32(tree):
    return jax.tree.map(lambda x: x.astype(np.float32), tree)


@functools.cache
def trained(optimizer):
    """The parameters after each update, and the optimizer's state before and after."""
    transformation = optimizer.build(AXES, TRAIN_STEPS, FREEZING)

    @functools.partial(jax.jit, static_argnums=3)
    def step(gradients, state, params, phase):
        mine = FREEZING.partition(params, phase)
        updates, state = transformation.update(
            FREEZING.partition(gradients, phase), state, mine
        )
        return combine(optax.apply_updates(mine, updates), params), state

    params = to_float32(PARAMS)
    first = state = transformation.init(params)
    history = []
    for i, gradients in enumerate(GRADIENTS):
        gradients = to_float32(gradients)
        params, state = step(gradients, state, params, FREEZING.phase(i))
        history.append(jax.device_get(params))
    return history, first, state


def trained_alone(optimizer, name, begin):
    """The same of one part alone, the schedule being at step `begin` at its first."""
    axes = {name: PART}
    transformation = optimizer.build(axes, TRAIN_STEPS)

    @jax.jit
    def step(gradients, state, params):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = to_float32({name: PARAMS[name]})
    *state, of_rate = transformation.init(params)
    state = (*state, of_rate._replace(count=np.int32(begin)))
    history = [params] * begin
    for gradients in GRADIENTS[begin:]:
        params, state = step(to_float32({name: gradients[name]}), state, params)
        history.append(jax.device_get(params))
    return [params[name] for params in history]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_part_trains_as_it_would_alone_from_where_it_begins(name):
    history, _, _ = trained(OPTIMIZERS[name])
    for part, begin in (("always", 0), ("early", N)):
        alone = trained_alone(OPTIMIZERS[name], part, begin)
        for found, want in zip(history, alone, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6),
                found[part],
                want,
            )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_keep_their_bits(name):
    history, _, _ = trained(OPTIMIZERS[name])
    start = to_float32(PARAMS)
    for i, params in enumerate(history):
        jax.tree.map(np.testing.assert_array_equal, params["never"], start["never"])
        for leaf, before in zip(
            jax.tree.leaves(params["early"]), jax.tree.leaves(start["early"])
        ):
            assert np.array_equal(leaf, before) == (i < N)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_never_trained_has_no_state(name):
    _, first, last = trained(OPTIMIZERS[name])
    for state in (first, last):
        paths = [
            jax.tree_util.keystr(path)
            for path, _ in jax.tree_util.tree_leaves_with_path(state)
        ]
        assert any("'early'" in path for path in paths)
        assert not any("'never'" in path for path in paths)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_lies_beside_its_parameters(name):
    transformation = OPTIMIZERS[name].build(AXES, TRAIN_STEPS, FREEZING)
    params = to_float32(PARAMS)
    specs = jax.tree.map(lambda leaf: ("data",) * leaf.ndim, params)
    spec = jax.sharding.PartitionSpec
    specs = jax.tree.map(
        lambda x: spec(*x), specs, is_leaf=lambda x: isinstance(x, tuple)
    )
    found = state_specs(transformation, params, specs)
    state = jax.eval_shape(transformation.init, params)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    bias = [
        spec_
        for path, spec_ in jax.tree_util.tree_leaves_with_path(found)
        if "'early'" in jax.tree_util.keystr(path) and path[-1].key == "bias"
    ]
    assert spec("data", "data") in bias


def test_adamw_clips_the_norm_of_what_it_trains():
    clip, decay, b1, b2, eps = 0.5, 0.3, 0.9, 0.95, 1e-8
    optimizer = optimizers.AdamW(schedule=SCHEDULE, weight_decay=decay, clip_norm=clip)
    history, _, _ = trained(optimizer)
    rates = [0.02 / 3, 0.04 / 3] + [0.02 * (1 - i / 6) for i in range(6)]
    params = {name: dict(PARAMS[name]) for name in PARAMS}
    moments = {}
    for t, gradients in enumerate(GRADIENTS):
        parts = ["always"] if t < N else ["always", "early"]
        norm = np.sqrt(sum((g**2).sum() for p in parts for g in gradients[p].values()))
        for part in parts:
            count = t + 1 if part == "always" else t + 1 - N
            for leaf, gradient in gradients[part].items():
                g = gradient * min(1, clip / norm)
                m, v = moments.get((part, leaf), (0, 0))
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                moments[part, leaf] = m, v
                change = m / (1 - b1**count) / (np.sqrt(v / (1 - b2**count)) + eps)
                theta = params[part][leaf]
                if leaf == "query":
                    change = change + decay * theta
                params[part][leaf] = theta - rates[t] * change
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-6),
            history[t],
            params,
        )


SHAPES = {
    "tokens": {"table": np.zeros((8, 4), np.float32)},
    "stack": {
        "layers": {"query": np.zeros((2, 4, 4), np.float32)},
        "norm": np.zeros(4, np.float32),
    },
    "head": np.zeros((4, 8), np.float32),
}


def test_where_rules_meet_the_longest_holds():
    rules = [
        Freeze(paths=("stack/**",), until=5),
        Freeze(paths=("stack/layers/*", "tokens/table"), until=9),
        Freeze(paths=("tokens/table",)),
    ]
    freezing = plan_freezing(rules, SHAPES)
    assert freezing.first_steps == {
        "tokens": {"table": NEVER},
        "stack": {"layers": {"query": 9}, "norm": 5},
        "head": 0,
    }
    phases = [freezing.phase(step) for step in (0, 4, 5, 8, 9, 1000)]
    assert phases == [0, 0, 5, 5, 9, 9]
    assert freezing.describe(SHAPES) == [
        "4 of them are frozen until step 5",
        "32 of them are frozen until step 9",
        "32 of them are frozen for ever",
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stack/layer_0/**", "some layers of 'stack/layers/query' longer than others"),
        ("**", "nothing is trained"),
        ("stak/**", "Did you mean 'stack/[*][*]'"),
    ],
)
def test_what_cannot_be_frozen_is_told(path, message):
    with pytest.raises(UserError, match=message) as info:
        plan_freezing([Freeze(paths=(path,), until=3)], SHAPES)
    assert str(info.value).startswith("freeze.paths")


def test_dtypes_are_those_of_what_is_frozen_for_ever():
    rules = [
        Freeze(paths=("stack/**",), until=5),
        Freeze(paths=("stack/layers/*", "tokens/table"), dtype="bfloat16"),
    ]
    freezing = plan_freezing(rules, SHAPES)
    kept = freezing.cast(SHAPES)
    assert {str(leaf.dtype) for leaf in (kept["head"], kept["stack"]["norm"])} == {
        "float32"
    }
    assert kept["tokens"]["table"].dtype == kept["stack"]["layers"]["query"].dtype
    assert kept["tokens"]["table"].dtype == "bfloat16"
    assert freezing.describe(SHAPES) == [
        "4 of them are frozen until step 5",
        "64 of them are frozen for ever, kept in bfloat16",
    ]


def test_what_is_trained_later_is_kept_in_float32():
    with pytest.raises(UserError, match=r"freeze.dtype = 'bfloat16'.*freeze.until = 3"):
        Freeze(paths=("**",), until=3, dtype="bfloat16")


@pytest.mark.parametrize(
    ("paths", "others", "message"),
    [
        (
            ("tokens/table", "stack/**"),
            ("tokens/table",),
            "'tokens/table' is kept in bfloat16 by one rule .* in float32 by another",
        ),
        (
            ("stack/layer_0/*",),
            ("stack/layer_1/*",),
            "keeps some layers of 'stack/layers/query' in another dtype",
        ),
    ],
)
def test_dtypes_that_contradict_each_other_are_told(paths, others, message):
    rules = [Freeze(paths=paths, dtype="bfloat16"), Freeze(paths=others)]
    with pytest.raises(UserError, match=message) as info:
        plan_freezing(rules, SHAPES)
    assert str(info.value).startswith("freeze.dtype")


@pytest.mark.parametrize(("field", "value"), [("paths", ()), ("until", 0)])
def test_values_out_of_bounds_are_refused(field, value):
    with pytest.raises(UserError, match=f"freeze.{field}"):
        Freeze(**{"paths": ("stack/**",), field: value})
