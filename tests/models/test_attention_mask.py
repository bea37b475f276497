"""Attention masks against transformers and brute force, and their memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import masking_utils
from transformers.models.gemma3 import modeling_gemma3

from fmjax.models.call_arguments import call_arguments
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers import attention
from fmjax.models.layers.attention_mask import (
    AttentionMask,
    cached_self_attention,
    cross_attention,
    self_attention,
)
from fmjax.models.layers.transformer_config import TransformerConfig

T = 23


def theirs(function):
    """transformers' mask function as an array [T, T]."""
    q, k = torch.arange(T)[:, None], torch.arange(T)[None]
    return np.asarray(function(0, 0, q, k))


@pytest.mark.parametrize("window", [1, 2, 5, T])
def test_windows_of_encoders_reach_both_sides_as_in_transformers(window):
    mask = AttentionMask(window=window).to_array(T, T)[0]
    gemma3 = modeling_gemma3._bidirectional_window_overlay(window)
    np.testing.assert_array_equal(mask, theirs(gemma3))
    # ModernBERT's counts the distance that is still seen.
    other = masking_utils.sliding_window_bidirectional_mask_function(window - 1)
    np.testing.assert_array_equal(mask, theirs(other))
    q, k = np.indices((T, T))
    np.testing.assert_array_equal(mask, np.abs(q - k) < window)


@pytest.mark.parametrize("window", [1, 2, 5, T])
def test_windows_of_decoders_reach_back_as_in_transformers(window):
    mask = AttentionMask(causal=True, window=window).to_array(T, T)[0]
    function = masking_utils.sliding_window_causal_mask_function(window)
    np.testing.assert_array_equal(mask, theirs(function))


def test_attention_in_an_encoders_window_is_that_of_numpy():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, T, 2, 4))
    mask = AttentionMask(window=3)
    got = attention.attend(*(jnp.float32(x) for x in (q, k, v)), mask)
    for t in range(T):
        near = slice(max(t - 2, 0), t + 3)
        scores = np.einsum("hk,shk->hs", q[0, t], k[0, near]) / 2
        weights = np.exp(scores)
        weights /= weights.sum(-1, keepdims=True)
        want = np.einsum("hs,shk->hk", weights, v[0, near])
        np.testing.assert_allclose(got[0, t], want, atol=1e-5)


def test_every_condition_holds_by_brute_force():
    rng = np.random.default_rng(0)
    B = 3
    segments = np.sort(rng.integers(0, 4, (B, T)))
    tokens = rng.random((B, T)) < 0.8
    applies = rng.random(4) < 0.5
    for causal in (True, False):
        mask = self_attention(causal, jnp.asarray(segments), jnp.asarray(tokens))
        for applied in applies:
            mask = dataclasses.replace(
                mask, window=4, window_applies=jnp.asarray(applied)
            )
            got = mask.to_array(T, T)
            for b, q, k in np.ndindex(B, T, T):
                want = segments[b, q] == segments[b, k] and tokens[b, k]
                want = want and (not causal or k <= q)
                want = want and (not applied or abs(q - k) < 4)
                assert got[b, q, k] == want


def test_slots_of_a_cache_are_seen_up_to_each_querys_position():
    positions = np.array([[5, 6], [0, 1]])
    mask = dataclasses.replace(cached_self_attention(jnp.asarray(positions)), window=3)
    got = mask.to_array(2, 9)
    for b, q, k in np.ndindex(2, 2, 9):
        assert got[b, q, k] == (0 <= positions[b, q] - k < 3)


def test_packed_decoders_read_their_own_segment_of_the_encoder():
    decoder, encoder = np.array([[1, 1, 2, 0]]), np.array([[1, 2, 2, 0, 0]])
    got = cross_attention(jnp.asarray(decoder), jnp.asarray(encoder), None)
    want = decoder[0][:, None] == encoder[0]
    np.testing.assert_array_equal(got.to_array(4, 5)[0], want)
    # A decoder that is not packed reads all but padding.
    got = cross_attention(None, jnp.asarray(encoder), None).to_array(4, 5)
    np.testing.assert_array_equal(np.broadcast_to(got[0], (4, 5))[0], encoder[0] > 0)


def test_nothing_hidden_makes_no_array():
    assert AttentionMask().to_array(T, T) is None


PACKED = {
    "segment_ids": np.repeat([[1, 2, 0]], [10, 8, 5], axis=1),
    "padding_mask": np.arange(T)[None] < 20,
}
CONFIG = TransformerConfig(num_layers=3, embed_dim=8, num_heads=2, window=4)
MIXED = dataclasses.replace(CONFIG, global_every=3)
SIZES = {"vocab_size": 40, "max_length": 64}
CASES = {
    "decoder": (GPT(CONFIG, **SIZES), PACKED),
    "decoder, some layers": (GPT(MIXED, **SIZES), PACKED),
    "unrolled": (GPT(dataclasses.replace(MIXED, scan_layers=False), **SIZES), PACKED),
    "encoder": (Bert(MIXED, **SIZES), PACKED),
    "encoder-decoder": (
        Seq2Seq(CONFIG, MIXED, positions="learned", **SIZES),
        {
            "encoder_segment_ids": PACKED["segment_ids"],
            "decoder_segment_ids": PACKED["segment_ids"],
        },
    ),
}


def arrays_of(jaxpr):
    """Shapes of all that a jaxpr computes, inner jaxprs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


def squares(model, arrays):
    """Shapes [..., T, T] in a model's loss and its gradient."""
    tokens = np.ones((1, T), np.int32)
    names = ("encoder_tokens", "decoder_tokens")
    read = names if isinstance(model, Seq2Seq) else ("tokens",)
    texts = call_arguments(model, dict.fromkeys(read, tokens) | arrays)
    params = jax.eval_shape(model.init, jax.random.key(0), **texts)

    def loss(params):
        return model.apply(params, **texts)["hidden"].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
    return [shape for shape in arrays_of(jaxpr.jaxpr) if shape[-2:] == (T, T)]


@pytest.mark.parametrize("name", CASES)
def test_packed_rows_and_windows_cost_squares_in_the_kernel_alone(name, monkeypatch):
    model, arrays = CASES[name]
    assert squares(model, arrays)  # the kernel of XLA makes some
    monkeypatch.setattr(attention, "attend", lambda q, k, v, mask, **kw: q)
    assert squares(model, arrays) == []
