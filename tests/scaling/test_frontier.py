"""IsoFLOP parabolas and envelopes against exact ones, and what is refused."""

import dataclasses

import numpy as np
import pytest

from fmjax.errors import UserError
from fmjax.scaling.frontier import (
    Best,
    best_of_parabolas,
    envelope,
    fit_envelope,
    fit_isoflop,
    frontier,
    parabolas,
)
from fmjax.scaling.points import Points
from fmjax.scaling.presets import PRESETS
from tests.scaling.runs import on_budgets

BUDGETS = np.geomspace(1e18, 1e21, 7)
LAW = PRESETS["besiroglu"].law
EXPONENT = LAW.beta / (LAW.alpha + LAW.beta)


def exact_parabolas() -> Points:
    """L = 0.05 (log N − log N*)² + L*, N* = 0.09 C^0.5, L* = 1.7 + (1e21 / C)^0.15."""
    C = np.repeat(BUDGETS, 5)
    best = 0.09 * C**0.5
    N = best * np.tile([0.3, 0.6, 1.1, 2, 3], len(BUDGETS))
    loss = 0.05 * np.log(N / best) ** 2 + 1.7 + (1e21 / C) ** 0.15
    return Points(N, C / 6 / N, loss)


def test_the_vertices_of_exact_parabolas_are_found():
    found = parabolas(exact_parabolas())
    assert len(found) == len(BUDGETS)
    for parabola, C in zip(found, BUDGETS):
        assert parabola.flops == pytest.approx(C)
        assert parabola.curvature == pytest.approx(0.05)
        assert parabola.parameters == pytest.approx(0.09 * C**0.5, rel=1e-9)
        assert parabola.loss == pytest.approx(1.7 + (1e21 / C) ** 0.15, rel=1e-12)


def test_the_power_laws_of_exact_parabolas_are_found():
    fit = fit_isoflop(exact_parabolas(), bootstrap=20)
    assert fit.law.k == pytest.approx(0.09, rel=1e-8)
    assert fit.law.a == pytest.approx(0.5, rel=1e-9)
    assert fit.law.E == pytest.approx(1.7, rel=1e-6)
    assert fit.law.C_c == pytest.approx(1e21, rel=1e-5)
    assert fit.law.gamma == pytest.approx(0.15, rel=1e-6)
    # Without noise every resample says the same.
    assert np.ptp([law.a for law in fit.samples]) < 1e-9


def test_given_budgets_gather_runs_that_are_not_quite_at_them():
    exact = exact_parabolas()
    # Runs of a budget differ by a factor of two, more than what is taken for one.
    apart = np.tile([0.7, 1.4, 0.9, 1.1, 1.2], len(BUDGETS))
    points = dataclasses.replace(exact, tokens=exact.tokens * apart)
    assert sum(len(found.points) for found in parabolas(points)) < len(points)
    found = parabolas(points, BUDGETS)
    assert [len(parabola.points) for parabola in found] == [5] * len(BUDGETS)
    fit = fit_isoflop(points, budgets=BUDGETS)
    # All budgets are displaced by the same factor.
    assert fit.law.a == pytest.approx(0.5, rel=1e-9)
    # Runs of no budget are left out, and so is one at 1.6 times its own.
    assert fit_isoflop(points, budgets=BUDGETS[:4]).points == 20
    apart[1] = 1.6
    points = dataclasses.replace(exact, tokens=exact.tokens * apart)
    assert fit_isoflop(points, budgets=BUDGETS).points == len(points) - 1


def test_isoflops_of_a_law_have_its_exponent():
    fit = fit_isoflop(on_budgets(LAW, BUDGETS, spread=2.0))
    assert fit.law.a == pytest.approx(EXPONENT, abs=0.003)
    best = LAW.optimum(1e20)
    assert fit.law.optimum(1e20).parameters == pytest.approx(best.parameters, rel=0.03)
    # And the loss of larger budgets, by E.
    assert fit.law.optimum(1e23).loss == pytest.approx(LAW.optimum(1e23).loss, rel=0.01)


def test_budgets_whose_best_is_not_among_their_sizes_are_left_out():
    points = exact_parabolas()
    first = np.flatnonzero(np.isclose(points.flops, BUDGETS[0]))
    kept = np.setdiff1d(np.arange(len(points)), first[2:])
    larger = points.take(first[2:])
    shifted = dataclasses.replace(
        larger, loss=larger.loss.max() - np.log(larger.parameters / 1e8) ** 2
    )
    points = Points(
        *(
            np.concatenate([getattr(points.take(kept), n), getattr(shifted, n)])
            for n in ("parameters", "tokens", "loss")
        )
    )
    assert len(parabolas(points)) == len(BUDGETS)
    assert len(best_of_parabolas(parabolas(points)).flops) == len(BUDGETS) - 1
    assert fit_isoflop(points).points == len(points) - 5


def test_a_loss_that_falls_as_a_power_law_has_no_irreducible_part():
    C = np.geomspace(1e18, 1e21, 9)
    law = frontier(Best(C, 0.1 * C**0.5, (1e28 / C) ** 0.05))
    assert law.E == pytest.approx(0, abs=1e-3)
    assert law.optimum(1e22).loss == pytest.approx((1e28 / 1e22) ** 0.05, rel=1e-6)
    # Two budgets do not tell.
    assert frontier(Best(C[:2], C[:2], (1e28 / C[:2]) ** 0.05)).E == 0


def curves(sizes) -> Points:
    """Training curves with a law's loss at every moment."""
    D = np.geomspace(1e8, 3e11, 120)
    N, D = (a.ravel() for a in np.meshgrid(sizes, D, indexing="ij"))
    run = np.array([f"{n:.3g}" for n in N])
    return Points(N, D, LAW.loss(N, D), run=run)


def test_the_envelope_of_curves_is_the_law_s_frontier():
    points = curves(np.geomspace(1e7, 1e10, 25))
    best = envelope(points)
    expected = [LAW.optimum(C).loss for C in best.flops]
    np.testing.assert_allclose(best.loss, expected, rtol=1e-3)
    fit = fit_envelope(points, bootstrap=10)
    assert fit.law.a == pytest.approx(EXPONENT, abs=0.01)
    assert len(fit.samples) == 10


def test_the_smallest_and_largest_runs_are_never_the_best_of_a_budget():
    sizes = np.geomspace(1e7, 1e10, 8)
    best = envelope(curves(sizes))
    assert best.parameters.min() > sizes[0] * 1.01
    assert best.parameters.max() < sizes[-1] * 0.99


@pytest.mark.parametrize(
    ("fit", "points", "message"),
    [
        (
            fit_isoflop,
            exact_parabolas().take([0, 1, 5, 6, 7, 8]),
            "1 budgets have 3 sizes or more, and 1 of them their lowest loss between",
        ),
        (fit_isoflop, exact_parabolas().take([0]), "0 budgets have 3 sizes or more"),
        (fit_envelope, exact_parabolas(), "the points have no runs"),
        (fit_envelope, curves([1e8, 1e9]), "2 runs; expected at least 3"),
        (fit_envelope, curves([1e8, 1e9, 1e10]), "at no two sizes"),
        (
            fit_envelope,
            dataclasses.replace(
                curves([1e8, 1e9, 1e10]),
                run=np.repeat(["a", "b", "c"], [100, 130, 130]),
            ),
            "run b has several parameters",
        ),
    ],
)
def test_points_without_a_frontier_are_refused(fit, points, message):
    with pytest.raises(UserError, match=message):
        fit(points)
