"""Tokens written with the cache against the model run from scratch for every one."""

import functools

import jax
import jax.numpy as jnp
import pytest
from random_writers import STYLES, build, log_probs
from tiers import slow

from fmjax.errors import UserError
from fmjax.inference import token_loop
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens
from fmjax.models.language.bert import Bert
from fmjax.models.layers.transformer_config import TransformerConfig

GREEDY = Sampling(temperature=0.0)
# The second fills its bucket, and 14 more ids the last position of a decoder.
PROMPTS = ([1, 2, 3], [5, 6] * 8, [7])


def from_scratch(model, params, prompt, row, max_tokens, sampling, seed=0):
    """Reads the whole text again for every token, without batch or cache."""
    key = jax.random.fold_in(jax.random.key(seed), row)
    first = 1 if hasattr(model, "encode") else len(prompt)
    ids = []
    for _ in range(max_tokens):
        logits = log_probs(model, params, prompt, ids)
        if sampling.temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            draw = jax.random.fold_in(key, first + len(ids))
            ids.append(int(jax.random.categorical(draw, logits / sampling.temperature)))
    return ids


@pytest.mark.parametrize(
    ("style", "scan_layers"),
    [
        *(
            slow(style, True) if "capacity" in style else (style, True)
            for style in STYLES
        ),
        ("llama", False),
        slow("t5", False),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_cached_equals_recomputed(style, scan_layers, temperature):
    model, params = build(style, scan_layers)
    sampling = Sampling(temperature)
    written = generate_tokens(
        model, params, PROMPTS, max_tokens=14, sampling=sampling, seed=3
    )
    for row, prompt in enumerate(PROMPTS):
        expected = from_scratch(model, params, prompt, row, 14, sampling, seed=3)
        assert written[row] == expected
    assert min(len(set(ids)) for ids in written) > 2


@pytest.mark.parametrize("style", ["llama", "t5", "mixtral_with_capacity"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch(temperature, style):
    model, params = build(style)
    write = functools.partial(
        generate_tokens,
        model,
        params,
        max_tokens=14,
        sampling=Sampling(temperature),
    )
    together = write(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert write([prompt], rows=[row]) == [together[row]]


def test_rows_and_seeds_draw_apart():
    model, params = build()
    draw = functools.partial(
        generate_tokens, model, params, [[1, 2, 3]] * 3, max_tokens=14
    )
    first = draw(sampling=Sampling(1.0), seed=0)
    assert first[0] != first[1]
    assert first == draw(sampling=Sampling(1.0), seed=0)
    assert first[0] != draw(sampling=Sampling(1.0), seed=1)[0]


def test_end_of_document_stops_its_row_alone():
    model, params = build()
    free = generate_tokens(model, params, PROMPTS, max_tokens=14, sampling=GREEDY)
    eos_id = free[0][2]
    stopped = generate_tokens(
        model, params, PROMPTS, max_tokens=14, sampling=GREEDY, eos_id=eos_id
    )
    for have, whole in zip(stopped, free):
        end = whole.index(eos_id) + 1 if eos_id in whole else len(whole)
        assert have == whole[:end]
    assert len({len(ids) for ids in stopped}) > 1


def test_ids_past_the_vocabulary_are_never_written():
    model, params = build()
    table = params["tokens"]["table"]
    # Padding that would win every row, were it not masked.
    loud = table.at[model.vocab_size :].set(100.0 * jnp.sign(table[:1]))
    params = {**params, "tokens": {"table": loud}}
    for sampling in (GREEDY, Sampling(5.0)):
        ids = generate_tokens(model, params, PROMPTS, max_tokens=14, sampling=sampling)
        assert max(map(max, ids)) < model.vocab_size
    ids = generate_tokens(
        model,
        params,
        PROMPTS,
        max_tokens=14,
        sampling=Sampling(5.0, top_k=100, top_p=1.0),
        vocab_size=6,
    )
    assert max(map(max, ids)) == 5
    free = generate_tokens(model, params, PROMPTS, max_tokens=14, sampling=GREEDY)
    padding = free[0][2]
    ids = generate_tokens(
        model, params, PROMPTS, max_tokens=14, sampling=GREEDY, padding_id=padding
    )
    assert not any(padding in row for row in ids)


def test_one_compilation_serves_a_bucket_and_all_numbers():
    model, params = build()
    compiled = token_loop._write
    run = functools.partial(generate_tokens, model, params, max_tokens=14)
    run([[1] * 3] * 3, sampling=GREEDY)
    before = compiled._cache_size()
    run([[1] * 16] * 3, sampling=Sampling(1), seed=5, eos_id=2)
    assert compiled._cache_size() == before


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1] * 20], {"max_tokens": 11}, "max_length = 30"),
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[37]], {}, "vocab_size"),
        ([[-1]], {}, "vocab_size"),
        ([[1]], {"max_tokens": 0}, "max_tokens = 0"),
        ([[1]], {"sampling": Sampling(1.0, top_p=1.5)}, "top_p = 1.5"),
    ],
)
def test_mistakes_are_named(prompts, options, message):
    model, params = build()
    with pytest.raises(UserError, match=message):
        generate_tokens(
            model, params, prompts, **{"max_tokens": 2, "sampling": GREEDY} | options
        )


def test_an_encoder_decoder_writes_as_much_as_it_holds():
    model, params = build("vaswani")
    (ids,) = generate_tokens(
        model, params, [[5, 6] * 15], max_tokens=30, sampling=GREEDY
    )
    assert len(ids) == 30
    assert ids == from_scratch(model, params, [5, 6] * 15, 0, 30, GREEDY)
    for prompt, count, message in ((31, 2, "prompt: 31"), (2, 31, "max_tokens: 31")):
        with pytest.raises(UserError, match=message):
            generate_tokens(
                model, params, [[1] * prompt], max_tokens=count, sampling=GREEDY
            )


def test_encoders_are_refused():
    model = Bert(TransformerConfig(1, 4, 1), vocab_size=9, max_length=8)
    with pytest.raises(UserError, match=r"@bert\(\) is an encoder"):
        generate_tokens(model, {}, [[1]], max_tokens=2, sampling=GREEDY)
