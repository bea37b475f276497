"""Kaplan's laws against the paper's statements and numeric minimization."""

import numpy as np
import pytest

from fmjax.scaling.kaplan import PF_DAY
from fmjax.scaling.laws import minimize_loss
from fmjax.scaling.presets import PRESETS

COMPUTE = PRESETS["kaplan"].law


def test_a_size_off_by_0_6_or_2_2_needs_a_fifth_more_compute():
    # Appendix B.4: "models between 0.6x and 2.2x the optimal size can be trained with
    # only a 20% larger compute budget".
    assert COMPUTE.excess(0.6) == pytest.approx(1.2, abs=0.05)
    assert COMPUTE.excess(2.2) == pytest.approx(1.2, abs=0.01)
    assert COMPUTE.excess(1.0) == 1


def test_a_size_that_is_far_too_small_never_gets_there():
    # Its converged loss, (N_c/N)^α_N, is that of 1 + α_N/α_S times the best size's.
    least = (1 + 0.076 / 0.76) ** (-1 / 0.076)
    assert np.isinf(COMPUTE.excess(least * 0.999))
    assert np.isfinite(COMPUTE.excess(least * 1.001))


def test_the_best_size_has_the_published_size_and_loss():
    best = COMPUTE.optimum(PF_DAY)
    assert best.parameters == pytest.approx(1.3e9)
    assert best.loss == pytest.approx(3.1e8**0.050)
    assert COMPUTE.optimum(10 * PF_DAY).parameters == pytest.approx(1.3e9 * 10**0.73)


@pytest.mark.parametrize("days", [1e-6, 1, 1e4])
def test_the_loss_is_lowest_at_the_best_size(days):
    best = COMPUTE.optimum(days * PF_DAY)
    found = minimize_loss(COMPUTE.loss, days * PF_DAY)
    assert found.loss == pytest.approx(best.loss, rel=1e-9)
    assert found.parameters == pytest.approx(best.parameters, rel=1e-3)


def test_the_loss_of_other_sizes_is_that_of_a_smaller_budget():
    # A size of 2.2 times the best of 1 PF-day has its loss with 20% more compute.
    best = COMPUTE.optimum(PF_DAY)
    N = 2.2 * best.parameters
    D = COMPUTE.excess(2.2) * PF_DAY / 6 / N
    assert COMPUTE.loss(N, D) == pytest.approx(best.loss, rel=1e-9)


def test_laws_of_one_quantity_are_the_paper_s():
    def loss(name, N, D):
        return float(PRESETS[name].law.loss(N, D))

    assert loss("kaplan_parameters", 8.8e13 / 10, 1) == pytest.approx(10**0.076)
    assert loss("kaplan_tokens", 1, 5.4e13 / 10) == pytest.approx(10**0.095)
    assert loss("kaplan_flops", 3.1e8 * PF_DAY / 60, 1) == pytest.approx(10**0.05)


def test_the_joint_law_has_both_limits():
    law = PRESETS["kaplan_joint"].law
    assert law.loss(6.4e13 / 1e4, 1e40) == pytest.approx(1e4**0.076)
    assert law.loss(1e40, 1.8e13 / 1e4) == pytest.approx(1e4**0.103)
