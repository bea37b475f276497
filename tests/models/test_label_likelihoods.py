"""Likelihoods of labels as text against float64 NumPy of whole calls of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from fmjax.inference.label_texts import padded_labels
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens
from fmjax.models.label_likelihoods import label_likelihoods
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig

TEXTS = [[5, 9, 2, 7, 1], [3, 1]]
LABELS = [[6, 1], [6, 2, 9, 1], [4, 1]]


@pytest.fixture(scope="module")
def drawn():
    stack = TransformerConfig(num_layers=1, embed_dim=16, num_heads=2)
    model = Seq2Seq(stack, stack, vocab_size=11, max_length=8, positions="learned")
    token = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), token, token)
    variables = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape),
        variables,
    )
    return model, {"params": jax.tree.map(jnp.asarray, variables["params"])}


def padded(texts):
    length = max(map(len, texts))
    tokens = np.array([text + [0] * (length - len(text)) for text in texts], np.int32)
    mask = np.array([[n < len(text) for n in range(length)] for text in texts])
    return TextInputs(jnp.array(tokens), padding_mask=jnp.array(mask))


def test_they_are_sums_over_the_tokens_of_a_label_without_padding(drawn):
    model, variables = drawn
    labels = padded_labels(LABELS)
    found = label_likelihoods(model, variables, padded(TEXTS), *labels)
    for row, text in enumerate(TEXTS):
        for column, label in enumerate(LABELS):
            read = jnp.array([[model.start_id, *label[:-1]]])
            logits = model.apply(variables, jnp.array([text]), read)["logits"][0]
            log_probs = scipy.special.log_softmax(np.array(logits, np.float64), -1)
            expected = log_probs[np.arange(len(label)), label].sum()
            ours = found.log_likelihoods[row, column]
            np.testing.assert_allclose(ours, expected, rtol=2e-5)


def test_greedy_is_what_greedy_decoding_writes(drawn):
    model, variables = drawn
    written = generate_tokens(
        model,
        variables["params"],
        TEXTS,
        max_tokens=4,
        sampling=Sampling(temperature=0.0),
        eos_id=1,
    )
    labels = [*LABELS, *written, *(text[:2] for text in written)]
    found = label_likelihoods(
        model, variables, padded(TEXTS), *padded_labels(labels)
    ).greedy
    expected = [[label == text[: len(label)] for label in labels] for text in written]
    np.testing.assert_array_equal(found, expected)
    assert 0 < np.mean(expected) < 1
