import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.optim import schedules

PEAK = 3e-3
TRAIN_STEPS = 400
STEPS = np.arange(0, 450)


def warm(t, w):
    return (t + 1) / (w + 1) if t < w else 1.0


def share(t, start, end):
    return min(1.0, max(0.0, (t - start) / (end - start)))


def triangle(t, cycle):
    phase = t % cycle
    return 2 * phase / cycle if phase <= cycle / 2 else 2 * (1 - phase / cycle)


CASES = {
    "constant": (
        schedules.Constant(learning_rate=PEAK, warmup_steps=20),
        lambda t: warm(t, 20),
    ),
    "constant without warm-up": (
        schedules.Constant(learning_rate=PEAK),
        lambda t: 1.0,
    ),
    "linear": (
        schedules.Linear(learning_rate=PEAK, warmup_steps=20, end_fraction=0.2),
        lambda t: warm(t, 20) * (1 - 0.8 * share(t, 20, 400)),
    ),
    "cosine": (
        schedules.Cosine(learning_rate=PEAK, warmup_steps=37),
        lambda t: (
            warm(t, 37) * (0.1 + 0.45 * (1 + math.cos(math.pi * share(t, 37, 400))))
        ),
    ),
    "cosine with its own end": (
        schedules.Cosine(learning_rate=PEAK, end_fraction=0.0, steps=250),
        lambda t: 0.5 * (1 + math.cos(math.pi * share(t, 0, 250))),
    ),
    "slanted triangle": (
        schedules.SlantedTriangular(learning_rate=PEAK),
        # With the paper's p of a cut at 40 steps, (1 + p (ratio - 1)) / ratio.
        lambda t: (1 + 31 * (t / 40 if t < 40 else max(0, 1 - (t - 40) / 360))) / 32,
    ),
    "T5's inverse square root": (
        schedules.InverseSquareRoot(learning_rate=PEAK, timescale=100),
        lambda t: 10 / math.sqrt(max(t, 100)),
    ),
    "Vaswani's inverse square root": (
        schedules.InverseSquareRoot(
            learning_rate=PEAK, warmup_steps=100, timescale=100
        ),
        lambda t: warm(t, 100) if t < 100 else math.sqrt(100 / t),
    ),
    "cyclic": (
        schedules.Cyclic(learning_rate=PEAK, cycle_steps=50, low_fraction=0.25),
        lambda t: 0.25 + 0.75 * triangle(t, 50),
    ),
    "warm-up, stable, decay": (
        schedules.WarmupStableDecay(
            learning_rate=PEAK, warmup_steps=20, end_fraction=0.1
        ),
        lambda t: warm(t, 20) * (0.1 + 0.9 * (1 - math.sqrt(share(t, 320, 400)))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule_follows_its_formula_at_every_step(name):
    schedule, formula = CASES[name]
    rate = jax.jit(jax.vmap(schedule.build(TRAIN_STEPS)))(jnp.asarray(STEPS))
    assert rate.dtype == jnp.float32
    expected = [PEAK * formula(int(t)) for t in STEPS]
    np.testing.assert_allclose(rate, expected, rtol=2e-5, atol=PEAK * 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_schedule_takes_python_ints(name):
    rate = CASES[name][0].build(TRAIN_STEPS)(7)
    assert rate.dtype == jnp.float32
    assert rate.shape == ()


def test_no_update_is_wasted_on_a_rate_of_zero():
    rate = schedules.Cosine(learning_rate=PEAK, warmup_steps=9).build(100)
    np.testing.assert_allclose(rate(0), PEAK / 10, rtol=1e-6)
    np.testing.assert_allclose(rate(9), PEAK, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (schedules.Constant, {}),
        (schedules.Linear, {}),
        (schedules.Cosine, {}),
        (schedules.InverseSquareRoot, {"timescale": 100}),
        (schedules.WarmupStableDecay, {}),
    ],
)
@pytest.mark.parametrize("steps", [40, 400])
def test_warmup_of_a_share_scales_with_the_run(make, more, steps):
    share = make(learning_rate=PEAK, warmup_steps=0.1, **more).build(steps)
    counted = make(learning_rate=PEAK, warmup_steps=steps // 10, **more).build(steps)
    at = np.arange(steps)
    np.testing.assert_array_equal(jax.vmap(share)(at), jax.vmap(counted)(at))
    np.testing.assert_allclose(share(0), PEAK / (steps // 10 + 1), rtol=1e-6)
    np.testing.assert_allclose(share(steps // 10), PEAK, rtol=1e-6)


def test_first_transformer_peaks_at_the_rate_its_paper_states():
    # Vaswani et al. 2017, eq. 3: d^-0.5 · min(t^-0.5, t · 4000^-1.5), d = 512.
    peak = (512 * 4000) ** -0.5
    schedule = schedules.InverseSquareRoot(
        learning_rate=peak, warmup_steps=4000, timescale=4000
    )
    rate = schedule.build(100_000)
    for t in (10_000, 50_000, 100_000):
        np.testing.assert_allclose(rate(t), 512**-0.5 * t**-0.5, rtol=1e-5)


def test_t5_decays_from_a_hundredth():
    # Raffel et al. 2020, 3.1.2: 1 / √max(n, 10⁴).
    rate = schedules.InverseSquareRoot(learning_rate=0.01).build(1)
    np.testing.assert_allclose(rate(0), 0.01, rtol=1e-6)
    np.testing.assert_allclose(rate(524_288), 524_288**-0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "reads"),
    [
        (schedules.Constant(learning_rate=PEAK), False),
        (schedules.InverseSquareRoot(learning_rate=PEAK), False),
        (schedules.Cyclic(learning_rate=PEAK, cycle_steps=10), False),
        (schedules.Linear(learning_rate=PEAK), True),
        (schedules.Cosine(learning_rate=PEAK), True),
        (schedules.WarmupStableDecay(learning_rate=PEAK), True),
        (schedules.SlantedTriangular(learning_rate=PEAK), True),
        (schedules.Cosine(learning_rate=PEAK, steps=100), False),
        (schedules.Constant(learning_rate=PEAK, warmup_steps=0.5), True),
    ],
)
def test_reads_train_steps_tells_whether_the_curve_depends_on_them(schedule, reads):
    assert schedule.reads_train_steps is reads
    short, long = (jax.vmap(schedule.build(n))(STEPS) for n in (200, 400))
    assert (not np.array_equal(short, long)) is reads


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: schedules.Constant(learning_rate=0.0), "constant.learning_rate"),
        (lambda: schedules.Linear(learning_rate=float("nan")), "linear.learning_rate"),
        (
            lambda: schedules.Cosine(learning_rate=PEAK, warmup_steps=-1),
            "cosine.warmup_steps",
        ),
        (
            lambda: schedules.Cosine(learning_rate=PEAK, warmup_steps=1.5),
            r"cosine.warmup_steps = 1.5.*float below 1",
        ),
        (
            lambda: schedules.Cosine(learning_rate=PEAK, end_fraction=1.5),
            "cosine.end_fraction",
        ),
        (lambda: schedules.Cosine(learning_rate=PEAK, steps=0), "cosine.steps"),
        (
            lambda: schedules.Cyclic(learning_rate=PEAK, cycle_steps=1),
            "cyclic.cycle_steps",
        ),
        (
            lambda: schedules.Cyclic(
                learning_rate=PEAK, cycle_steps=9, low_fraction=-1.0
            ),
            "cyclic.low_fraction",
        ),
        (
            lambda: schedules.InverseSquareRoot(
                learning_rate=PEAK, warmup_steps=10, timescale=9
            ).build(100),
            "inverse_square_root.timescale",
        ),
        (
            lambda: schedules.WarmupStableDecay(learning_rate=PEAK, decay_fraction=0.0),
            "warmup_stable_decay.decay_fraction",
        ),
        (
            lambda: schedules.Cosine(learning_rate=PEAK, warmup_steps=11).build(10),
            r"cosine.warmup_steps = 11.* train.steps = 10",
        ),
        (
            lambda: schedules.Linear(
                learning_rate=PEAK, warmup_steps=11, steps=10
            ).build(99),
            r"linear.warmup_steps = 11.* linear.steps = 10",
        ),
        (
            lambda: schedules.WarmupStableDecay(
                learning_rate=PEAK, warmup_steps=90
            ).build(100),
            r"warmup_stable_decay.warmup_steps = 90.* 80",
        ),
    ],
)
def test_values_out_of_bounds_name_their_binding(make, named):
    with pytest.raises(UserError, match=named):
        make()
