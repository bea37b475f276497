"""Sampling against closed forms and the distributions that it should follow."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from fmjax.errors import UserError
from fmjax.inference import sampling
from fmjax.inference.sampling import Sampling

sample = jax.jit(sampling.sample)
restrict = jax.jit(sampling.restrict)


def keys(num_rows, seed=0):
    return jax.random.split(jax.random.key(seed), num_rows)


def kept(logits, **limits):
    out = np.asarray(restrict(np.float32([logits]), **limits)[0])
    assert np.array_equal(out[out > -np.inf], np.float32(logits)[out > -np.inf])
    return set(np.flatnonzero(out > -np.inf).tolist())


def test_temperature_zero_takes_the_likeliest():
    logits = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
    drawn = sample(logits, keys(50), Sampling(temperature=0.0))
    np.testing.assert_array_equal(drawn, logits.argmax(-1))


def test_a_small_temperature_takes_the_likeliest_of_large_logits():
    logits = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32) * 1e4
    drawn = sample(logits, keys(50), Sampling(temperature=1e-37))
    np.testing.assert_array_equal(drawn, logits.argmax(-1))


def test_top_k_keeps_the_k_likeliest():
    logits = np.random.default_rng(1).normal(size=11)
    for k in range(1, 11):
        assert kept(logits, top_k=k) == set(np.argsort(-logits)[:k].tolist())
    assert kept(logits, top_k=50) == set(range(11))


def test_top_k_keeps_no_more_than_k_of_equal_logits():
    assert kept([1.0, 2.0, 1.0, 2.0, 2.0], top_k=2) == {1, 3}


# Probabilities 1/2 (id 2), 1/4 (id 0), 1/8 (ids 1 and 3): the fewest that reach p.
@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-6, {2}),
        (0.5, {2}),
        (0.51, {2, 0}),
        (0.75, {2, 0}),
        (0.76, {2, 0, 1}),
        (0.9, {2, 0, 1, 3}),
        (1.0, {2, 0, 1, 3}),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(top_p, expected):
    assert kept(np.log([0.25, 0.125, 0.5, 0.125]), top_p=top_p) == expected


def test_top_p_is_of_what_top_k_left():
    # Of 0.4 and 0.3 alone the first has 4/7 > 0.55; of all it has less.
    logits = np.log([0.4, 0.3, 0.3])
    assert kept(logits, top_p=0.55) == {0, 1}
    assert kept(logits, top_k=2, top_p=0.55) == {0}


def test_top_p_of_one_keeps_a_long_tail():
    logits = np.zeros(50_000)
    logits[0] = 30.0
    assert len(kept(logits, top_p=1.0)) == 50_000


@pytest.mark.parametrize(
    "limits", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 6, "top_p": 0.9}]
)
def test_frequencies_follow_the_softmax(limits):
    logits = np.random.default_rng(2).normal(size=10)
    draws, temperature = 20_000, 0.7
    drawn = sample(
        np.tile(np.float32(logits), (draws, 1)),
        keys(draws),
        Sampling(temperature, **limits),
    )
    found = np.bincount(drawn, minlength=10)
    p = special.softmax(logits / temperature)
    order = np.argsort(-p)
    if "top_k" in limits:
        p[order[limits["top_k"] :]] = 0
        p /= p.sum()
    if "top_p" in limits:
        fewest = np.searchsorted(np.cumsum(p[order]), limits["top_p"]) + 1
        p[order[fewest:]] = 0
        p /= p.sum()
    assert found[p == 0].sum() == 0
    assert (p == 0).any() == bool(limits)
    test = stats.chisquare(found[p > 0], draws * p[p > 0])
    assert test.pvalue > 1e-3


def test_limits_that_leave_nothing_out_change_no_draw():
    logits = np.random.default_rng(3).normal(size=(64, 9)).astype(np.float32)
    free = sample(logits, keys(64), Sampling(1.0))
    bound = sample(logits, keys(64), Sampling(1.0, top_k=9, top_p=1.0))
    np.testing.assert_array_equal(free, bound)


def test_a_row_draws_by_its_key_alone():
    logits = np.random.default_rng(4).normal(size=(8, 9)).astype(np.float32)
    batch = sample(logits, keys(8), Sampling(1.0, 7, 0.95))
    for i in range(8):
        alone = sample(logits[i : i + 1], keys(8)[i : i + 1], Sampling(1.0, 7, 0.95))
        assert int(alone[0]) == int(batch[i])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} = {value}"):
        Sampling(**{name: value}).check()
