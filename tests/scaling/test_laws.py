"""Published laws and Hoffmann's closed form, against numeric minimization."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize

from fmjax.scaling.laws import Frontier, HoffmannLaw, minimize_loss
from fmjax.scaling.presets import PRESETS


@pytest.mark.parametrize("name", ["hoffmann", "besiroglu", "muennighoff"])
@pytest.mark.parametrize("flops", [1e17, 5.76e23])
def test_the_closed_form_is_the_minimum(name, flops):
    law = PRESETS[name].law

    def loss(x):  # the formula again, of log N
        N = np.exp(x)
        D = flops / 6 / N
        return law.E + law.A / N**law.alpha + law.B / D**law.beta

    found = optimize.minimize_scalar(
        loss, bracket=(np.log(1e6), np.log(1e12)), tol=1e-12
    )
    best = law.optimum(flops)

    assert best.loss == pytest.approx(found.fun, rel=1e-12)
    assert best.parameters == pytest.approx(np.exp(found.x), rel=1e-5)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)


@given(
    st.floats(0.5, 3), st.floats(1, 1e4), st.floats(1, 1e4),
    st.floats(0.1, 1), st.floats(0.1, 1), st.floats(1e16, 1e25),
)  # fmt: skip
def test_no_other_size_is_better(E, A, B, alpha, beta, flops):
    law = HoffmannLaw(E, A, B, alpha, beta)
    best = law.optimum(flops)
    assume(best.parameters > 1 and best.tokens > 1)
    N = best.parameters * np.geomspace(1e-3, 1e3, 101)
    assert best.loss <= law.loss(N, flops / 6 / N).min() * (1 + 1e-12)
    assert law.parameters_for(best.tokens) == pytest.approx(best.parameters)
    # What laws without a closed form use.
    assert minimize_loss(law.loss, flops).loss == pytest.approx(best.loss, rel=1e-9)


def test_exponents_and_ratios_are_those_of_the_papers():
    # Hoffmann et al., table 2, approach 3: 0.46 and 0.54, of unrounded constants.
    hoffmann = PRESETS["hoffmann"].law
    growth = hoffmann.optimum(1e24).parameters / hoffmann.optimum(1e23).parameters
    assert np.log10(growth) == pytest.approx(0.46, abs=0.011)
    # Besiroglu et al.: the refit agrees with 20 tokens a parameter, Chinchilla's own.
    refit = PRESETS["besiroglu"].law.optimum(5.76e23)
    assert refit.tokens / refit.parameters == pytest.approx(20, rel=0.15)
    assert refit.parameters == pytest.approx(70e9, rel=0.1)


def test_a_frontier_spends_the_budget():
    best = Frontier(k=0.1, a=0.5, E=1.5, C_c=1e28, gamma=0.05).optimum(1e20)
    assert best.parameters == pytest.approx(1e9)
    assert best.tokens == pytest.approx(1e20 / 6e9)
    assert best.loss == pytest.approx(1.5 + 10**0.4)
