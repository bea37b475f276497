"""Updates against closed forms in float64 NumPy and against PyTorch."""

import itertools

import jax
import numpy as np
import optax
import pytest

from fmjax.errors import UserError
from fmjax.optim import optimizers, schedules

SCHEDULE = schedules.Linear(learning_rate=0.02, warmup_steps=2)
TRAIN_STEPS = 8
RATES = [0.02 / 3, 0.04 / 3] + [0.02 * (1 - i / 6) for i in range(6)]

AXES = {
    "query": {"kernel": ("embed", "heads", "kv"), "bias": ("heads", "kv")},
    "out": ("heads", "kv", "embed"),
    "norm": ("norm",),
    "tokens": ("vocab", "embed"),
}
SHAPES = {
    "query": {"kernel": (8, 3, 4), "bias": (3, 4)},
    "out": (3, 4, 8),
    "norm": (8,),
    "tokens": (20, 8),
}
# The same, told by hand: (rows, columns) of matrices, None for vectors.
AS_MATRIX = {
    "query": {"kernel": (8, 12), "bias": None},
    "out": (12, 8),
    "norm": None,
    "tokens": (20, 8),
}


def by_leaf(function, *trees):
    """Maps over the leaves, with the matrix shape of each as the first argument."""
    trees = [jax.tree.leaves(t, is_leaf=_is_leaf) for t in (AS_MATRIX, *trees)]
    structure = jax.tree.structure(AXES, is_leaf=_is_leaf)
    return jax.tree.unflatten(structure, [function(*leaf) for leaf in zip(*trees)])


def _is_leaf(x):
    return x is None or isinstance(x, tuple)


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return by_leaf(lambda _, shape: scale * rng.normal(size=shape), SHAPES)


PARAMS = draw(0, scale=0.5)
GRADIENTS = [draw(i, scale=10.0 ** -(i % 3)) for i in range(1, 6)]


def to_float32(tree):
    return jax.tree.map(lambda x: x.astype(np.float32), tree)


def trained(optimizer):
    """The parameters after each of a few updates."""
    transformation = optimizer.build(AXES, TRAIN_STEPS)

    @jax.jit
    def step(gradient, state, params):
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = to_float32(PARAMS)
    state = jax.jit(transformation.init)(params)
    history = []
    for gradient in GRADIENTS:
        params, state = step(to_float32(gradient), state, params)
        history.append(jax.device_get(params))
    return history


def expected(rule, clip_norm):
    """The same in float64 by `rule(shape, t, lr, theta, g, memory) → theta`."""
    memory = by_leaf(lambda *_: {}, PARAMS)
    memory = jax.tree.leaves(memory, is_leaf=lambda x: x == {})
    params, history = PARAMS, []
    for t, gradient in enumerate(GRADIENTS, start=1):
        if clip_norm is not None:
            norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
            shrink = min(1.0, clip_norm / norm)
            gradient = jax.tree.map(lambda g, s=shrink: g * s, gradient)
        leaves = iter(memory)
        params = by_leaf(
            lambda shape, theta, g, t=t, m=leaves: rule(
                shape, t, RATES[t - 1], theta, g, next(m)
            ),
            params,
            gradient,
        )
        history.append(params)
    return history


def assert_close(found, wanted, rtol=2e-5):
    for a, b in zip(found, wanted, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, 2e-6), a, b)


def adam(t, g, memory, b1, b2, eps):
    memory["m"] = m = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = v = b2 * memory.get("v", 0) + (1 - b2) * g**2
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def test_adamw_is_its_closed_form():
    def rule(matrix, t, lr, theta, g, memory):
        decay = 0.3 * theta if matrix else 0
        return theta - lr * (adam(t, g, memory, 0.9, 0.95, 1e-8) + decay)

    optimizer = optimizers.AdamW(schedule=SCHEDULE, weight_decay=0.3)
    assert_close(trained(optimizer), expected(rule, clip_norm=1.0))


def test_clipping_can_be_turned_off():
    def rule(matrix, t, lr, theta, g, memory):
        return theta - lr * adam(t, g, memory, 0.8, 0.9, 1e-3)

    optimizer = optimizers.AdamW(
        schedule=SCHEDULE, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.0, clip_norm=None
    )
    assert_close(trained(optimizer), expected(rule, clip_norm=None))


def test_lion_is_its_closed_form():
    def rule(matrix, t, lr, theta, g, memory):
        m = memory.get("m", 0)
        direction = np.sign(0.9 * m + 0.1 * g)
        memory["m"] = 0.99 * m + 0.01 * g
        return theta - lr * (direction + (theta if matrix else 0))

    optimizer = optimizers.Lion(schedule=SCHEDULE)
    assert_close(trained(optimizer), expected(rule, clip_norm=1.0))


def test_lamb_is_its_closed_form_and_rescales_matrices_alone():
    def rule(matrix, t, lr, theta, g, memory):
        u = adam(t, g, memory, 0.9, 0.999, 1e-6)
        if matrix:
            u = u + 0.01 * theta
            u = u * np.linalg.norm(theta) / np.linalg.norm(u)
        return theta - lr * u

    optimizer = optimizers.Lamb(schedule=SCHEDULE)
    assert_close(trained(optimizer), expected(rule, clip_norm=1.0))


def test_adafactor_is_its_closed_form_with_heads_and_width_as_one_side():
    def rule(matrix, t, lr, theta, g, memory):
        keep = 1 - t**-0.8
        square = g**2 + 1e-30
        if matrix:
            square = square.reshape(matrix)
            memory["r"] = r = keep * memory.get("r", 0) + (1 - keep) * square.mean(1)
            memory["c"] = c = keep * memory.get("c", 0) + (1 - keep) * square.mean(0)
            v = (np.outer(r, c) / r.mean()).reshape(g.shape)
        else:
            memory["v"] = v = keep * memory.get("v", 0) + (1 - keep) * square
        u = g / np.sqrt(v)
        u = u / max(1, np.sqrt((u**2).mean()) / 1.0)
        u = u * max(1e-3, np.sqrt((theta**2).mean()))
        return theta - lr * u

    optimizer = optimizers.Adafactor(schedule=SCHEDULE, min_dim_size_to_factor=8)
    assert_close(trained(optimizer), expected(rule, clip_norm=None))


def test_adafactor_keeps_whole_moments_of_narrow_matrices():
    optimizer = optimizers.Adafactor(schedule=SCHEDULE, min_dim_size_to_factor=9)
    transformation = optimizer.build(AXES, TRAIN_STEPS)
    state = jax.eval_shape(transformation.init, PARAMS)
    shapes = [x.shape for x in jax.tree.leaves(optax.tree.get(state, "v"))]
    assert shapes == [x.shape for x in jax.tree.leaves(PARAMS)]


def test_adafactor_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    weights = by_leaf(lambda shape, x: torch.tensor(x.reshape(shape or -1)), PARAMS)
    leaves = jax.tree.leaves(weights)
    groups = [
        {"params": [w], "weight_decay": 0.1 if w.ndim == 2 else 0.0} for w in leaves
    ]
    # PyTorch lowers rates above 1/√t: this one never is.
    theirs = torch.optim.Adafactor(groups, lr=0.01, eps=(1e-30, 1e-3))
    history = []
    for gradient in GRADIENTS:
        for w, g in zip(leaves, jax.tree.leaves(gradient)):
            w.grad = torch.tensor(g.reshape(w.shape))
        theirs.step()
        history.append(
            by_leaf(lambda _, w, x: w.numpy().copy().reshape(x.shape), weights, PARAMS)
        )
    ours = optimizers.Adafactor(
        schedule=schedules.Constant(learning_rate=0.01),
        min_dim_size_to_factor=1,
        weight_decay=0.1,
    )
    assert_close(trained(ours), history)


def newton_schulz(x):
    """Five quintic steps with the coefficients of Jordan et al. 2024."""
    wide = x if x.shape[0] <= x.shape[1] else x.T
    y = wide / np.linalg.norm(wide)
    for _ in range(5):
        a = y @ y.T
        y = 3.4445 * y + (-4.7750 * a + 2.0315 * a @ a) @ y
    return y if x.shape[0] <= x.shape[1] else y.T


def test_muon_orthogonalizes_hidden_matrices_and_leaves_the_rest_to_adamw():
    def rule(matrix, t, lr, theta, g, memory):
        decay = 0.1 * theta if matrix else 0
        if matrix is None or 20 in matrix:
            return theta - lr * (adam(t, g, memory, 0.9, 0.95, 1e-8) + decay)
        memory["m"] = m = 0.95 * memory.get("m", 0) + 0.05 * g
        # Nesterov's look-ahead with the bias corrections of NAdam (Dozat 2016).
        ahead = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        u = newton_schulz(ahead.reshape(matrix)).reshape(g.shape)
        return theta - lr * (0.2 * np.sqrt(max(matrix)) * u + decay)

    optimizer = optimizers.Muon(schedule=SCHEDULE)
    assert_close(trained(optimizer), expected(rule, clip_norm=1.0), rtol=1e-4)


def test_muon_updates_have_the_size_of_adamw_updates():
    # Liu et al. 2025, section 2.2: a root mean square of 0.2 for every shape.
    axes = {"wide": ("embed", "mlp"), "square": ("embed", "heads", "kv")}
    shapes = {"wide": (64, 256), "square": (64, 4, 16)}
    rng = np.random.default_rng(0)
    params = to_float32({k: rng.normal(size=s) for k, s in shapes.items()})
    optimizer = optimizers.Muon(
        schedule=schedules.Constant(learning_rate=1.0), weight_decay=0.0
    )
    transformation = optimizer.build(axes, TRAIN_STEPS)
    updates, _ = jax.jit(lambda x: transformation.update(x, transformation.init(x), x))(
        params
    )
    for update in updates.values():
        rms = np.sqrt(np.mean(np.square(update)))
        assert 0.14 < rms < 0.24


def test_learning_rate_is_the_one_that_the_update_uses():
    optimizer = optimizers.Lion(schedule=SCHEDULE, weight_decay=0.0, clip_norm=None)
    history = [PARAMS, *trained(optimizer)]
    for step, (before, after) in enumerate(itertools.pairwise(history)):
        rate = optimizer.learning_rate(step, TRAIN_STEPS)
        np.testing.assert_allclose(rate, RATES[step], rtol=1e-5)
        moved = np.abs(np.asarray(after["tokens"], np.float64) - before["tokens"])
        np.testing.assert_allclose(moved, rate, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (optimizers.AdamW, {"b2": 1.0}, r"adamw\.b2 = 1\.0: expected"),
        (optimizers.AdamW, {"eps": 0.0}, r"adamw\.eps"),
        (optimizers.AdamW, {"weight_decay": -0.1}, r"adamw\.weight_decay"),
        (optimizers.AdamW, {"clip_norm": 0.0}, r"adamw\.clip_norm"),
        (optimizers.Lamb, {"b1": -0.1}, r"lamb\.b1"),
        (optimizers.Lion, {"b1": float("nan")}, r"lion\.b1"),
        (optimizers.Muon, {"momentum": 1.5}, r"muon\.momentum"),
        (optimizers.Muon, {"update_rms": 0.0}, r"muon\.update_rms"),
        (optimizers.Adafactor, {"decay_rate": 0.0}, r"adafactor\.decay_rate"),
        (
            optimizers.Adafactor,
            {"clipping_threshold": 0.0},
            r"adafactor\.clipping_threshold",
        ),
        (
            optimizers.Adafactor,
            {"min_dim_size_to_factor": 0},
            r"adafactor\.min_dim_size_to_factor",
        ),
    ],
)
def test_values_out_of_bounds_name_their_binding(kind, values, named):
    with pytest.raises(UserError, match=named):
        kind(schedule=SCHEDULE, **values)


def test_a_schedule_that_does_not_fit_the_run_is_refused():
    schedule = schedules.Cosine(learning_rate=1e-3, warmup_steps=100)
    with pytest.raises(UserError, match=r"cosine\.warmup_steps"):
        optimizers.AdamW(schedule=schedule).build(AXES, train_steps=50)
