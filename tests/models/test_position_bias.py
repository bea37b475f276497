"""Positions in attention against transformers, brute force and the papers' formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.t5.modeling_t5 import T5Attention

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.attention import Attention
from fmjax.models.layers.attention_mask import AttentionMask, self_attention
from fmjax.models.layers.disentangled import (
    Disentangled,
    disentangled_scores,
    log_bucket,
)
from fmjax.models.layers.position_bias import (
    Alibi,
    alibi,
    alibi_slopes,
    relative_bucket,
    sinusoids,
)
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16, 64])
def test_slopes_are_powers_of_the_first(heads):
    # Press et al. 2022, section 3: a geometric sequence from 2^(-8/n), by that ratio.
    want = [2 ** (-8 / heads * (i + 1)) for i in range(heads)]
    np.testing.assert_allclose(alibi_slopes(heads), want, rtol=1e-6)


@pytest.mark.parametrize("heads", [3, 5, 6, 7, 12, 20, 25, 40, 112])
def test_slopes_of_other_head_counts(heads):
    two = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)
    np.testing.assert_allclose(alibi_slopes(heads), two[:, 0, 1], rtol=1e-6)


def test_alibi_falls_with_distance_to_both_sides():
    queries, keys = np.array([[5, 0], [9, 3]]), np.array([[0, 1, 5], [3, 2, 9]])
    got = alibi(4, jnp.asarray(queries), jnp.asarray(keys))
    for b, h, t, s in np.ndindex(got.shape):
        slope = 2.0 ** (-2 * (h + 1))
        assert got[b, h, t, s] == -slope * abs(queries[b, t] - keys[b, s])


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("interleaved", [True, False])
def test_sines_of_the_paper(width, interleaved):
    # Vaswani et al. 2017, section 3.5.
    positions = np.array([[0, 1, 7, 300]])
    pairs = -(-width // 2)
    want = np.zeros((1, 4, width))
    for t, i in np.ndindex(4, pairs):
        angle = positions[0, t] / 10000.0 ** (2 * i / width)
        places = (2 * i, 2 * i + 1) if interleaved else (i, pairs + i)
        for place, value in zip(places, (np.sin(angle), np.cos(angle))):
            if place < width:
                want[0, t, place] = value
    got = sinusoids(jnp.asarray(positions), width, interleaved)
    np.testing.assert_allclose(got, want, atol=3e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 64), (64, 500)])
def test_buckets_of_t5(buckets, farthest, causal):
    offsets = np.arange(-700, 701)
    want = T5Attention._relative_position_bucket(
        torch.from_numpy(offsets),
        bidirectional=not causal,
        num_buckets=buckets,
        max_distance=farthest,
    )
    got = relative_bucket(jnp.asarray(offsets), buckets, farthest, causal)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (32, 128), (8, 24)])
def test_buckets_of_deberta(buckets, farthest):
    offsets = np.arange(1 - farthest, farthest)
    want = make_log_bucket_position(torch.from_numpy(offsets), buckets, farthest)
    got = np.asarray(log_bucket(jnp.asarray(offsets), buckets, farthest))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, -got[::-1])
    assert np.abs(got).max() < buckets


def reached(config, mask, T):
    """Which inputs move which outputs of a stack, bool [T, T]."""
    stack = Stack(config)
    context = Context(jnp.arange(T)[None], mask)
    rng = np.random.default_rng(0)
    # The text as it is, and with another token at each position in turn.
    x = np.repeat(rng.normal(size=(1, T, config.embed_dim)), T + 1, axis=0)
    x[np.arange(T) + 1, np.arange(T)] += rng.normal(size=(T, config.embed_dim))
    x = jnp.float32(x)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x, context)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32),
        nn.unbox(shapes),
    )
    y = jax.jit(lambda params, x: stack.apply(params, x, context)["hidden"])(params, x)
    return np.abs(y[1:] - y[:1]).max(-1).T > 1e-5


@pytest.mark.parametrize(
    ("layers", "window", "global_every", "causal", "scan_layers"),
    [
        (2, 3, None, True, True),
        (2, 3, None, False, False),
        (2, 2, 3, True, True),
        (3, 2, 3, True, True),
        (3, 2, 3, False, False),
        (1, 4, 1, True, True),
    ],
)
def test_windows_by_brute_force(layers, window, global_every, causal, scan_layers):
    config = TransformerConfig(
        num_layers=layers,
        embed_dim=8,
        num_heads=2,
        window=window,
        global_every=global_every,
        scan_layers=scan_layers,
    )
    # Two documents in a row.
    segments = np.array([1] * 7 + [2] * 4)
    T = len(segments)
    distance = np.arange(T)[:, None] - np.arange(T)
    allowed = segments[:, None] == segments
    if causal:
        allowed &= distance >= 0
    got = reached(config, self_attention(causal, jnp.asarray(segments)[None]), T)
    want = np.eye(T, dtype=bool)
    for layer in range(layers):
        sees = allowed.copy()
        if global_every is None or (layer + 1) % global_every:
            sees &= np.abs(distance) < window
        want = sees @ want
    np.testing.assert_array_equal(got, want)


def test_a_window_alone_makes_the_mask():
    config = TransformerConfig(1, 8, 2, window=2)
    want = np.tril(np.ones((6, 6), bool)) & ~np.tril(np.ones((6, 6), bool), -2)
    np.testing.assert_array_equal(reached(config, self_attention(True), 6), want)


def test_disentangled_scores_of_the_paper():
    # He et al. 2021, equation 4, with k = 3; the released models look up the second
    # part's position from the query's side, δ(i, j), and so does this.
    rng = np.random.default_rng(0)
    B, T, H, K, k = 2, 9, 2, 4, 3
    q, key = rng.normal(size=(2, B, T, H, K))
    relative_q, relative_k = rng.normal(size=(2, 2 * k, H, K))

    def delta(i, j):
        # Equation 3.
        if i - j <= -k:
            return 0
        return 2 * k - 1 if i - j >= k else i - j + k

    rows = np.array([[delta(i, j) for j in range(T)] for i in range(T)])[None]
    got = disentangled_scores(
        *(jnp.float32(x) for x in (q, key, relative_q, relative_k)), jnp.asarray(rows)
    )
    want = np.zeros((B, H, T, T))
    for b, h, i, j in np.ndindex(want.shape):
        content_to_position = q[b, i, h] @ relative_k[delta(i, j), h]
        position_to_content = key[b, j, h] @ relative_q[delta(i, j), h]
        want[b, h, i, j] = content_to_position + position_to_content
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_disentangled_attention_of_the_paper():
    # Equation 4 whole: H = softmax(A / sqrt(3 d)) V.
    rng = np.random.default_rng(0)
    B, T, H, K, D, P = 2, 5, 2, 3, 7, 8
    module = Attention(
        num_heads=H,
        num_kv_heads=H,
        head_dim=K,
        cross=False,
        qkv_bias=True,
        bias=True,
        rotary=None,
        qk_norm=None,
        scale=None,
        softcap=None,
        dropout=0.0,
        implementation="xla",
        init_std=0.02,
        out_init_std=0.02,
        dtype=jnp.dtype(jnp.float32),
    )
    x, vectors = rng.normal(size=(B, T, D)), rng.normal(size=(P, D))
    rows = rng.integers(P, size=(1, T, T))

    def run(params):
        return module.apply(
            params,
            jnp.float32(x),
            positions=jnp.arange(T)[None],
            mask=AttentionMask(),
            bias=None,
            relative=(jnp.float32(vectors), jnp.asarray(rows)),
            encoder_hidden=None,
            cache=None,
            keys=None,
        )[0]

    shapes = {
        **{name: (D, H, K) for name in ("query", "key", "value")},
        **{f"{name}_bias": (H, K) for name in ("query", "key", "value")},
        "out": (H, K, D),
        "out_bias": (D,),
    }
    p = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def project(a, name):
        return np.einsum("...d,dhk->...hk", a, p[name]) + p[f"{name}_bias"]

    q, k, v = (project(x, name) for name in ("query", "key", "value"))
    at = vectors[rows[0]]  # [T, T, D], the position between i and j
    scores = np.einsum("bihk,bjhk->bhij", q, k)
    scores += np.einsum("bihk,ijhk->bhij", q, project(at, "key"))
    scores += np.einsum("bjhk,ijhk->bhij", k, project(at, "query"))
    weights = np.exp(scores / np.sqrt(3 * K))
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("bhij,bjhk,hkd->bid", weights, v, p["out"]) + p["out_bias"]
    got = jax.jit(run)({"params": jax.tree.map(jnp.float32, p)})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


NONE = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2)
ALIBI = dataclasses.replace(NONE, position_bias=Alibi())
ROTARY = dataclasses.replace(NONE, rotary=Rotary(1e4))


@pytest.mark.parametrize(
    ("family", "stacks", "named"),
    [
        (GPT, (NONE,), "gpt.transformer"),
        (Bert, (NONE,), "bert.transformer"),
        (Seq2Seq, (NONE, NONE), "seq2seq.encoder"),
        (Seq2Seq, (ALIBI, NONE), "seq2seq.decoder"),
        (Electra, (NONE, ALIBI), "electra.discriminator"),
        (Electra, (ROTARY, NONE), "electra.generator"),
    ],
)
def test_a_stack_that_is_told_no_positions_is_refused(family, stacks, named):
    with pytest.raises(UserError, match=rf"positions = 'none' and, of {named}, "):
        family(*stacks, 9, 8, positions="none")
    family(*stacks, 9, 8, positions="sinusoidal")
    for told in (ALIBI, ROTARY):
        family(*[told] * len(stacks), 9, 8, positions="none")


def test_a_discriminator_alone_needs_no_generators_positions():
    Electra(ALIBI, None, 9, 8, positions="none")


@pytest.mark.parametrize("option", ["attention_scale", "attention_softcap"])
def test_disentangled_attention_takes_no_other_scale_or_cap(option):
    with pytest.raises(UserError, match=f"transformer.{option} = 1.0: disentangled"):
        dataclasses.replace(NONE, position_bias=Disentangled(), **{option: 1.0})
