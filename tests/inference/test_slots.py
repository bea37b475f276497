"""The decoders' contract: slots with texts of their own, and log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_writers import build, log_probs

from fmjax.inference.decoder import Prompts, decoder_of
from fmjax.inference.sampling import Sampling
from fmjax.inference.slots import empty_slots, insert
from fmjax.inference.token_loop import generate_tokens

PROMPTS = ([1, 2, 3], [5, 6] * 4, [7])


def from_scratch(model, params, prompt, count):
    """Greedy ids, everything read again without a cache."""
    ids = []
    for _ in range(count):
        ids.append(int(log_probs(model, params, prompt, ids).argmax()))
    return ids


@pytest.mark.parametrize("style", ["gpt2", "llama", "t5"])
def test_a_slot_takes_a_new_text_while_others_go_on(style):
    model, params = build(style)
    decoder = decoder_of(model)
    next_logits, step = jax.jit(decoder.next_logits), jax.jit(decoder.decode_step)

    def prefilled(prompt, width=8):
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(prompt)] = prompt
        lengths = np.array([len(prompt)], np.int32)
        return jax.jit(decoder.prefill, static_argnums=2)(
            params, Prompts(jnp.asarray(tokens), jnp.asarray(lengths)), 12
        )

    slots = empty_slots(prefilled(PROMPTS[0]), 3)
    # The third slot stays empty until the first has ended. Its text is read alone, into
    # a shorter cache, and takes the first's place.
    written, held = {0: [], 1: [], 2: []}, {0: 0, 1: 1}
    slots = insert(slots, prefilled(PROMPTS[0]), jnp.array([0]))
    slots = insert(slots, prefilled(PROMPTS[1]), jnp.array([1]))
    for count in range(9):
        if count == 4:
            slots = insert(slots, prefilled(PROMPTS[2], width=4), jnp.array([0]))
            held[0] = 2
        tokens = next_logits(params, slots).argmax(-1)
        for slot, text in held.items():
            written[text].append(int(tokens[slot]))
        slots = step(params, tokens, slots)
    assert [len(ids) for ids in written.values()] == [4, 9, 5]
    for text, ids in written.items():
        assert ids == from_scratch(model, params, PROMPTS[text], len(ids))
    assert len({*written[1]}) > 2


def test_slots_that_are_too_short_are_refused():
    decoder = decoder_of(build()[0])
    params = build()[1]
    prompts = Prompts(jnp.ones((1, 4), int), jnp.array([4]))
    short, long = (decoder.prefill(params, prompts, n) for n in (2, 9))
    with pytest.raises(ValueError, match="do not fit slots"):
        insert(empty_slots(short, 2), long, jnp.array([0]))


@pytest.mark.parametrize("style", ["llama", "t5"])
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7, top_k=5)])
def test_logprobs_are_those_of_the_models_logits(style, sampling):
    model, params = build(style)
    options = dict(max_tokens=9, sampling=sampling, padding_id=3, vocab_size=30)
    plain = generate_tokens(model, params, PROMPTS, **options)
    eos_id = plain[1][4]
    scored = generate_tokens(
        model, params, PROMPTS, **options, eos_id=eos_id, logprobs=True
    )
    assert min(len(row.tokens) for row in scored) < 9
    for prompt, row, whole in zip(PROMPTS, scored, plain):
        assert row.tokens == whole[: len(row.tokens)]
        assert len(row.logprobs) == len(row.tokens)
        for i, (token, found) in enumerate(zip(*row)):
            # Over the whole vocabulary, whatever may not be drawn of it.
            expected = log_probs(model, params, prompt, row.tokens[:i])[token]
            assert found == pytest.approx(float(expected), abs=1e-4)
