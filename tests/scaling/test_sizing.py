"""Sizes for budgets against brute force and arithmetic, and laws as files."""

import dataclasses
import json

import numpy as np
import pytest

from fmjax import scaling
from fmjax.errors import UserError
from fmjax.scaling.fit import Fit
from fmjax.scaling.law_files import find_law, write_fit
from fmjax.scaling.laws import Frontier, HoffmannLaw
from fmjax.scaling.presets import PRESETS
from fmjax.scaling.sizing import Chips, size

SURFACES = ["hoffmann", "besiroglu", "muennighoff", "kaplan", "kaplan_joint"]


@pytest.mark.parametrize("name", SURFACES)
def test_sizes_within_a_tolerance_are_those_of_brute_force(name):
    law = PRESETS[name].law
    answers, _ = size(find_law(name), flops=1e21, tolerance=0.02)
    N = np.geomspace(1e6, 1e13, 20001)
    loss = law.loss(N, 1e21 / 6 / N)
    good = N[loss <= 1.02 * loss.min()]
    assert answers.best.parameters == pytest.approx(N[loss.argmin()], rel=2e-3)
    assert answers.smallest.parameters == pytest.approx(good[0], rel=2e-3)
    assert answers.largest.parameters == pytest.approx(good[-1], rel=2e-3)
    for end in (answers.smallest, answers.largest):
        assert end.loss == pytest.approx(1.02 * answers.best.loss, rel=1e-6)
        assert 6 * end.parameters * end.tokens == pytest.approx(1e21)


@pytest.mark.parametrize("name", SURFACES)
def test_a_size_or_a_number_of_tokens_alone_has_the_budget_it_is_best_for(name):
    fit = find_law(name)
    best = fit.law.optimum(3e20)
    by_size, _ = size(fit, parameters=best.parameters)
    by_tokens, _ = size(fit, tokens=best.tokens)
    for answers in (by_size, by_tokens):
        assert answers.flops == pytest.approx(3e20, rel=1e-4)
        assert answers.asked.loss == pytest.approx(answers.best.loss, rel=1e-6)


def test_a_size_and_tokens_are_compared_with_the_best_of_their_budget():
    law = PRESETS["hoffmann"].law
    answers, _ = size(find_law("hoffmann"), parameters=175e9, tokens=300e9)
    assert answers.flops == pytest.approx(3.15e23)  # GPT-3
    assert answers.asked.loss == pytest.approx(float(law.loss(175e9, 300e9)))
    assert answers.asked.loss > answers.best.loss
    at_budget, _ = size(find_law("hoffmann"), flops=3.15e23, tokens=300e9)
    assert at_budget.asked.parameters == pytest.approx(175e9)


def test_hours_are_flops_over_what_the_chips_do():
    chips = Chips(count=256, peak_flops=197e12, mfu=0.5)
    assert chips.flops(24) == pytest.approx(256 * 197e12 * 0.5 * 86400)
    assert chips.hours(chips.flops(24)) == pytest.approx(24)


def test_data_are_judged_with_repetition():
    fit = find_law("muennighoff")
    wanted = fit.law.optimum(1e21).tokens

    def verdict(unique):
        return size(fit, flops=1e21, unique=unique)[1].verdict(0.01)

    assert verdict(wanted * 1.001) == "enough"
    # Four epochs are nearly as good as new tokens (Muennighoff et al., abstract).
    assert verdict(wanted / 4) == "enough if repeated"
    assert verdict(wanted / 40) == "too few"


def test_the_table_of_epochs_repeats_as_often_as_it_says():
    _, repetition = size(find_law("muennighoff"), unique=1e9)
    for row, epochs in zip(repetition.table, (1, 2, 4, 8, 16, 32, 64), strict=True):
        assert row.best.tokens == pytest.approx(epochs * 1e9, rel=1e-6)
        assert row.flops == pytest.approx(6 * row.best.parameters * row.best.tokens)
        assert row.best.loss >= row.unlimited_loss * (1 - 1e-12)
        assert row.best.loss > repetition.floor
    worths = [row.worth for row in repetition.table]
    assert worths == sorted(worths, reverse=True)
    law = PRESETS["muennighoff"].law
    assert law.worth(repetition.half_worth) == pytest.approx(0.5)
    assert law.worth(repetition.stops_paying) == pytest.approx(np.exp(-1))


def test_intervals_are_those_of_the_samples():
    law = PRESETS["besiroglu"].law
    samples = tuple(
        dataclasses.replace(law, alpha=a) for a in np.linspace(0.3, 0.4, 41)
    )
    answers, _ = size(Fit(law, 240, "huber", samples), flops=1e22)
    sizes = sorted(sample.optimum(1e22).parameters for sample in samples)
    assert answers.parameters_interval == pytest.approx((sizes[1], sizes[-2]))
    low, high = answers.loss_interval
    assert low < answers.best.loss < high
    answers, _ = size(Fit(law, 240, "huber", samples), flops=1e22, parameters=1e9)
    D = 1e22 / 6e9
    losses = sorted(float(sample.loss(1e9, D)) for sample in samples)
    assert answers.asked_loss_interval == pytest.approx((losses[1], losses[-2]))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_laws_are_stored_and_read_back(name, tmp_path):
    law = PRESETS[name].law
    fit = Fit(law, 12, "huber", (law, law), huber_sum=1e-3, delta=1e-3)
    write_fit(fit, tmp_path / "law.json")
    read = find_law(str(tmp_path / "law.json"))
    assert read.law == law
    assert dataclasses.replace(read, samples=()) == dataclasses.replace(fit, samples=())
    for sample in read.samples:
        assert dataclasses.astuple(sample) == pytest.approx(
            dataclasses.astuple(law), rel=1e-7
        )


def test_a_frontier_has_a_best_size_and_no_others():
    law = Frontier(0.1, 0.5, 0.0, 1e28, 0.05)
    answers, _ = size(Fit(law, 9, "isoflop"), flops=1e20)
    assert answers.best.parameters == pytest.approx(1e9)
    assert answers.smallest is None
    assert answers.largest is None
    other, _ = size(Fit(law, 9, "isoflop"), flops=1e20, parameters=2e9)
    assert other.asked.tokens == pytest.approx(1e20 / 12e9)
    assert other.asked.loss is None


@pytest.mark.parametrize(
    ("law", "asked", "message"),
    [
        ("hoffmann", {}, "no budget; expected --flops"),
        (
            "hoffmann",
            {"flops": 1e20, "parameters": 1e9, "tokens": 1e9},
            "--parameters and --tokens: expected one",
        ),
        (
            "kaplan",
            {"flops": 1e20, "unique": 1e9},
            "--unique_tokens 1e\\+09: repetition",
        ),
        ("kaplan_tokens", {"flops": 1e20}, "'kaplan_tokens' says nothing of how to"),
        ("hoffmann", {"parameters": 1e30}, r"1e\+30 parameters: expected what is"),
        ("hoffman", {"flops": 1e20}, "Did you mean 'hoffmann'"),
    ],
)
def test_questions_that_a_law_cannot_answer_are_refused(law, asked, message):
    with pytest.raises(UserError, match=message):
        size(find_law(law), **asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", 'expected "law" and "constants"'),
        ('{"law": "hofmann", "constants": {}}', "Did you mean 'hoffmann'"),
        ('{"law": "hoffmann", "constants": {"E": 1}}', "expected E, A, B, alpha, beta"),
        (
            json.dumps(
                {
                    "law": "hoffmann",
                    "constants": dataclasses.asdict(HoffmannLaw(1, 2, 3, -0.1, 1)),
                }
            ),
            "alpha = -0.1: expected a number of at least 0",
        ),
        (
            json.dumps(
                {
                    "law": "hoffmann",
                    "constants": dataclasses.asdict(HoffmannLaw(1, 2, 3, 0.1, 1)),
                    "samples": {"E": [1, 2]},
                }
            ),
            "samples: expected as many numbers of each of E, A",
        ),
    ],
)
def test_files_that_hold_no_law_are_refused(tmp_path, text, message):
    file = tmp_path / "law.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        find_law(str(file))
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        find_law(str(tmp_path / "none.json"))


def test_chips_make_flops_and_hours():
    eight = scaling.chips("v5e-8", mfu=0.5)
    assert eight.flops(hours=2) == 2 * 3600 * 8 * 0.5 * 197e12
    assert eight.hours(eight.flops(hours=2)) == pytest.approx(2)
    with pytest.raises(UserError, match=r"--mfu 1\.5"):
        scaling.chips("v5e-8", mfu=1.5)


def test_every_public_name_of_scaling_is_there():
    for name in scaling.__all__:
        assert callable(getattr(scaling, name))
    assert not hasattr(scaling, "law_of")
