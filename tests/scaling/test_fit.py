"""Fits of laws: synthetic points, the Chinchilla runs, and what is refused."""

import dataclasses
import re

import numpy as np
import pytest
from scipy import special

from fmjax.errors import UserError
from fmjax.scaling.fit import fit_law
from fmjax.scaling.huber import huber_sum, resamples
from fmjax.scaling.points import Points, read_points
from fmjax.scaling.presets import PRESETS
from tests.scaling.runs import runs_of

# Of ../shared/data/README.md: the best of a grid of L-BFGS starts of another code, with
# 240 points, D = C / 6N, delta 1e-3, and the sum (not the mean) of Huber losses.
REFIT = {
    "E": 1.81724, "A": 477.84, "B": 2143.86, "alpha": 0.34731, "beta": 0.36718,
}  # fmt: skip
REFIT_HUBER_SUM = 0.00101827


def constants(law):
    return np.array(dataclasses.astuple(law))


@pytest.mark.parametrize(
    "name",
    ["hoffmann", "kaplan_joint", "kaplan_parameters", "kaplan_tokens", "kaplan_flops"],
)
def test_noiseless_points_give_their_law_back(name):
    law = PRESETS[name].law
    found = fit_law(name, runs_of(law))
    assert type(found.law) is type(law)
    np.testing.assert_allclose(constants(found.law), constants(law), rtol=1e-6)


@pytest.mark.slow
def test_noiseless_repeated_data_give_their_law_back():
    law = PRESETS["muennighoff"].law
    N, D, U = np.meshgrid(
        np.geomspace(1e7, 1e10, 4), np.geomspace(1e9, 1e11, 4), [1e9, np.inf]
    )
    unlimited = np.isinf(U)
    limit = np.where(unlimited, 1.0, U)
    loss = np.where(unlimited, law.loss(N, D), law.constrained_loss(N, D, limit))
    points = Points(*(a.ravel() for a in (N, D, loss, U)))

    found = fit_law("muennighoff", points)

    np.testing.assert_allclose(constants(found.law), constants(law), rtol=1e-6)


def test_intervals_are_about_the_law_and_narrow_with_more_points():
    law = PRESETS["kaplan_tokens"].law
    widths = []
    for count in (10, 160):
        points = runs_of(law, [1e9], np.geomspace(1e9, 1e12, count), noise=0.003)
        intervals = fit_law("kaplan_tokens", points, bootstrap=200).intervals()
        for name, value in dataclasses.asdict(law).items():
            low, high = intervals[name]
            # Twice as wide as 95%, so that chance alone does not fail it.
            assert abs(value - (low + high) / 2) < high - low, name
        widths.append(intervals["alpha_D"][1] - intervals["alpha_D"][0])
    assert widths[1] < 0.5 * widths[0]  # a quarter, by the square root of sixteen


def test_the_huber_sum_is_scipy_s():
    residuals = np.random.default_rng(0).normal(0, 2e-3, 100)
    expected = special.huber(1e-3, residuals).sum()
    assert huber_sum(residuals, 1e-3) == pytest.approx(expected, rel=1e-12)


def test_resamples_draw_as_many_points_and_enough_different_ones():
    weights = resamples(points=6, count=300, distinct=5, seed=1)
    assert (weights.sum(axis=1) == 6).all()
    assert (np.count_nonzero(weights, axis=1) >= 5).all()
    assert (weights == resamples(6, 300, 5, 1)).all()


def chinchilla_runs(shared_data):
    return read_points(
        shared_data / "scaling" / "chinchilla_runs.csv",
        {"parameters": "Model Size", "flops": "Training FLOP"},
        without_highest=5,
    )


def test_the_chinchilla_refit(shared_data):
    points = chinchilla_runs(shared_data)
    assert len(points) == 240

    found = fit_law("hoffmann", points, bootstrap=200)

    # The objective in float64 NumPy, of the constants that the fit gives.
    E, A, B, alpha, beta = dataclasses.astuple(found.law)
    N, D = points.parameters, points.tokens
    residuals = np.log(E + A / N**alpha + B / D**beta) - np.log(points.loss)
    total = special.huber(1e-3, residuals).sum()
    assert total <= REFIT_HUBER_SUM + 0.5e-8  # its last digit
    assert found.huber_sum == pytest.approx(total, rel=1e-9)
    for name, value in REFIT.items():
        assert getattr(found.law, name) == pytest.approx(value, rel=1e-3)
        low, high = found.intervals()[name]
        assert low < value < high
    # Hoffmann et al.'s own constants are outside, as Besiroglu et al. state.
    published = PRESETS["hoffmann"].law
    low, high = found.intervals()["beta"]
    assert not low < published.beta < high


LAW = PRESETS["hoffmann"].law


@pytest.mark.parametrize(
    ("name", "points", "message"),
    [
        (
            "hoffmann",
            runs_of(LAW).take(slice(0, 30, 8)),
            "--law hoffmann: 4 points; expected at least 5",
        ),
        (
            "hoffmann",
            runs_of(LAW, sizes=[1e8, 1e9]),
            "2 different parameters; expected at least 3",
        ),
        (
            "kaplan_tokens",
            runs_of(LAW, tokens=[1e9]),
            "1 different tokens; expected at least 2",
        ),
        ("muennighoff", runs_of(LAW), "the points have no unique_tokens"),
        (
            "muennighoff",
            dataclasses.replace(runs_of(LAW), unique_tokens=np.full(30, np.inf)),
            "0 points repeat their data",
        ),
        ("hofman", runs_of(LAW), "Did you mean 'hoffmann'?"),
    ],
)
def test_points_that_do_not_determine_a_law_are_refused(name, points, message):
    with pytest.raises(UserError, match=re.escape(message)):
        fit_law(name, points)


def test_as_many_points_as_parameters_have_no_bootstrap():
    points = runs_of(PRESETS["kaplan_tokens"].law, [1e9], [1e9, 1e10])
    with pytest.raises(UserError, match="--bootstrap 9: expected 0, or more points"):
        fit_law("kaplan_tokens", points, bootstrap=9)
