"""Beam search against NumPy that looks everywhere, or keeps beams without a cache."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from random_writers import build, log_probs
from tiers import slow

from fmjax.errors import UserError
from fmjax.inference.beam_search import beam_search_tokens
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens

PROMPTS = ([1, 2, 0], [2] * 17, [1])


def score(log_prob, length, alpha):
    return log_prob / ((5 + length) / 6) ** alpha


def all_texts(model, params, prompt, eos_id, max_tokens, alpha):
    """Every text with its score, the best first."""
    found, beginnings = [], [((), 0.0)]
    for _ in range(max_tokens):
        longer = []
        for ids, before in beginnings:
            after = np.asarray(log_probs(model, params, prompt, ids), np.float64)
            for i in range(model.vocab_size):
                text = ((*ids, i), before + after[i])
                ended = i == eos_id or len(ids) + 1 == max_tokens
                (found if ended else longer).append(text)
        beginnings = longer
    scored = [(score(value, len(ids), alpha), list(ids)) for ids, value in found]
    return sorted(scored, reverse=True)


@pytest.mark.parametrize("style", ["llama", "vaswani"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_enough_beams_find_all_texts_in_order(style, alpha):
    model, params = build(style, vocab_size=3)
    # No more than 3^4 beginnings exist: nothing is ever dropped.
    found = beam_search_tokens(
        model,
        params,
        PROMPTS,
        max_tokens=4,
        beams=81,
        n_best=81,
        length_penalty=alpha,
        eos_id=1,
    )
    for prompt, texts in zip(PROMPTS, found):
        expected = all_texts(model, params, prompt, 1, 4, alpha)
        assert len(expected) == 31
        assert [h.tokens for h in texts] == [ids for _, ids in expected]
        scores = [value for value, _ in expected]
        np.testing.assert_allclose([h.score for h in texts], scores, atol=2e-5)


def beams_without_a_cache(model, params, prompt, K, eos_id, max_tokens, alpha):
    """The K best texts of a search that goes on to the last token."""
    live, ended = [(0.0, [])], []
    for length in range(1, max_tokens + 1):
        every = []
        for before, ids in live:
            after = np.asarray(log_probs(model, params, prompt, ids), np.float64)
            every += [(before + p, [*ids, i]) for i, p in enumerate(after)]
        every = sorted(every, reverse=True)[: 2 * K]
        for value, ids in every[:K]:
            if ids[-1] == eos_id or length == max_tokens:
                ended.append((score(value, length, alpha), ids))
        live = [(value, ids) for value, ids in every if ids[-1] != eos_id][:K]
    return sorted(ended, reverse=True)[:K]


@pytest.mark.parametrize(("style", "scan_layers"), [("gpt2", True), slow("t5", False)])
def test_stopping_early_loses_nothing(style, scan_layers):
    model, params = build(style, scan_layers)
    (free,) = generate_tokens(
        model, params, PROMPTS[:1], max_tokens=9, sampling=Sampling(0.0)
    )
    eos_id = free[2]
    lengths = set()
    for alpha in (0.0, 1.0):
        found = beam_search_tokens(
            model,
            params,
            PROMPTS,
            max_tokens=9,
            beams=3,
            n_best=3,
            length_penalty=alpha,
            eos_id=eos_id,
        )
        for prompt, texts in zip(PROMPTS, found):
            expected = beams_without_a_cache(model, params, prompt, 3, eos_id, 9, alpha)
            assert [h.tokens for h in texts] == [ids for _, ids in expected]
            scores = [value for value, _ in expected]
            np.testing.assert_allclose([h.score for h in texts], scores, rtol=1e-4)
            lengths |= {len(h.tokens) for h in texts}
            # A row alone finds what it finds in a batch.
            assert texts[0].tokens == beam_search_tokens(
                model,
                params,
                [prompt],
                max_tokens=9,
                beams=3,
                length_penalty=alpha,
                eos_id=eos_id,
            )[0][0].tokens  # fmt: skip
    assert len(lengths) > 2


@pytest.mark.parametrize("style", ["gpt2", slow("vaswani")])
def test_one_beam_is_greedy(style):
    model, params = build(style)
    options = {"max_tokens": 12, "eos_id": 7, "padding_id": 3, "vocab_size": 30}
    greedy = generate_tokens(model, params, PROMPTS, sampling=Sampling(0.0), **options)
    found = beam_search_tokens(model, params, PROMPTS, beams=1, **options)
    assert [h.tokens for (h,) in found] == greedy
    assert 3 not in set(itertools.chain(*greedy))
    assert max(itertools.chain(*greedy)) < 30


def test_padding_of_the_vocabulary_is_never_written_and_takes_no_probability():
    model, params = build()
    table = params["tokens"]["table"]
    loud = table.at[model.vocab_size :].set(100.0 * jnp.sign(table[:1]))
    loud = {**params, "tokens": {"table": loud}}
    options = {"max_tokens": 6, "beams": 5, "n_best": 5}
    assert beam_search_tokens(model, loud, PROMPTS, **options) == beam_search_tokens(
        model, params, PROMPTS, **options
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams = 0"),
        ({"beams": 2, "n_best": 3}, "n_best = 3: expected 1 to beams = 2"),
        ({"beams": 2, "length_penalty": -0.1}, "length_penalty = -0.1"),
        ({"beams": 2, "max_tokens": 30}, "max_length = 30"),
    ],
)
def test_mistakes_are_named(options, message):
    model, params = build()
    with pytest.raises(UserError, match=message):
        beam_search_tokens(model, params, PROMPTS, **{"max_tokens": 2} | options)
