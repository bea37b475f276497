"""The law of repeated data against the figures of Muennighoff et al. 2023."""

import numpy as np
import pytest

from fmjax.scaling.data_constrained import repeated
from fmjax.scaling.presets import PRESETS

LAW = PRESETS["muennighoff"].law


def test_constants_are_those_of_equation_17():
    assert LAW.A == pytest.approx(521, abs=0.5)
    assert LAW.B == pytest.approx(1488, abs=0.5)
    assert LAW.E == pytest.approx(1.87, abs=0.005)
    assert LAW.parameters_for(1e9) == pytest.approx(0.051e9, rel=2e-3)


def test_one_epoch_of_the_best_size_is_hoffmann_s_law():
    best = LAW.optimum(1e21)
    for unique in (best.tokens, 3 * best.tokens):
        constrained = LAW.constrained_loss(best.parameters, best.tokens, unique)
        assert constrained == pytest.approx(best.loss, rel=1e-12)


@pytest.mark.parametrize("epochs", [1, 2, 5, 30])
def test_effective_data_are_those_of_equation_5(epochs):
    U, N = 1e9, 1e7  # fewer parameters than U is optimal for: N' = N
    R = epochs - 1
    effective = U + U * 15.387756 * (1 - np.exp(-R / 15.387756))
    expected = LAW.E + LAW.A / N**LAW.alpha + LAW.B / effective**LAW.beta
    assert LAW.constrained_loss(N, epochs * U, U) == pytest.approx(expected)


def test_excess_parameters_are_discounted():
    U, U_N = 1e9, 0.05096e9
    N = 4 * U_N
    effective = U_N + U_N * 5.309743 * (1 - np.exp(-3 / 5.309743))
    expected = LAW.E + LAW.A / effective**LAW.alpha + LAW.B / U**LAW.beta
    assert LAW.constrained_loss(N, U, U) == pytest.approx(expected, rel=1e-4)


def test_worth_is_the_slope_of_effective_data():
    U, D, step = 1e9, 7e9, 1e3

    def effective(D):  # from the loss of a model too small to have excess parameters
        term = LAW.constrained_loss(1e6, D, U) - LAW.E - LAW.A / 1e6**LAW.alpha
        return (LAW.B / term) ** (1 / LAW.beta)

    slope = (effective(D + step) - effective(D - step)) / (2 * step)
    assert LAW.worth(7) == pytest.approx(slope, rel=1e-4)
    assert LAW.worth(1) == LAW.worth(0.5) == 1


def test_the_frontier_is_that_of_the_paper_s_figure_1():
    # 25B unique tokens, 9.3e21 FLOPs: 6.34B parameters and 242B tokens, 9.7 epochs,
    # where Chinchilla's law asks for 8.67B parameters and 178B tokens.
    best = LAW.constrained_optimum(9.3e21, 25e9)
    assert best.parameters == pytest.approx(6.34e9, rel=0.1)
    assert best.tokens / 25e9 == pytest.approx(9.7, rel=0.1)
    unlimited = LAW.optimum(9.3e21)
    assert unlimited.tokens == pytest.approx(178e9, rel=0.1)
    assert best.loss > unlimited.loss


def test_no_budget_goes_below_the_floor():
    for flops in (1e18, 1e20, 1e22):
        assert LAW.constrained_optimum(flops, 1e9).loss > LAW.floor(1e9)
    assert LAW.constrained_optimum(1e26, 1e9).loss == pytest.approx(LAW.floor(1e9))


def test_other_laws_take_its_constants_of_repetition():
    law = repeated(PRESETS["hoffmann"].law, LAW)
    assert (law.A, law.R_D, law.R_N) == (406.4, LAW.R_D, LAW.R_N)
    assert repeated(LAW, law) is LAW
