"""The encoder-decoder's loss against float64 NumPy; packing changes nothing."""

import dataclasses

import jax
import numpy as np
from flax import linen as nn

from fmjax.data.text.encoder_decoder_row import encoder_decoder_row
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.seq2seq_lm import Seq2SeqLM

V, START = 71, 3
CONFIG = TransformerConfig(
    num_layers=2, embed_dim=24, num_heads=3, norm_position="post", dtype="float32"
)
MODEL = Seq2Seq(
    CONFIG,
    dataclasses.replace(CONFIG, num_layers=1),
    V,
    40,
    start_id=START,
    positions="sinusoidal",
    embed_scale=True,
)
OBJECTIVE = Seq2SeqLM(MODEL, label_smoothing=0.1)


def variables():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(OBJECTIVE.init, jax.random.key(0))),
    )


def pairs(*lengths):
    rng = np.random.default_rng(1)
    return [(rng.integers(4, V, n), rng.integers(4, V, m)) for n, m in lengths]


def stacked(*rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def loss(v, data):
    terms, metrics, _ = jax.jit(lambda v, d: OBJECTIVE.loss(v, d, None))(v, data)
    return terms["cross_entropy"], metrics


def test_loss_is_that_of_targets_shifted_behind_the_start():
    v, made = variables(), pairs((9, 7), (12, 5))
    data = stacked(*(encoder_decoder_row([pair], 14, 10) for pair in made))
    term, metrics = loss(v, data)
    want = nll = 0.0
    for source, targets in made:
        inputs = np.array([[START, *targets[:-1]]])
        logits = jax.jit(MODEL.apply)(v, source[None], inputs)["logits"][0]
        x = np.asarray(logits, np.float64)
        scores = x - np.log(np.exp(x).sum(-1, keepdims=True))
        gold = scores[np.arange(len(targets)), targets]
        want -= (0.9 * gold + 0.1 * scores.mean(-1)).sum()
        nll -= gold.sum()
    np.testing.assert_allclose(term.sum, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"].sum, nll, rtol=1e-5)
    assert term.weight == 12


def test_packed_pairs_do_not_see_each_other():
    v, made = variables(), pairs((9, 7), (12, 5), (4, 11))
    alone = stacked(*(encoder_decoder_row([pair], 14, 12) for pair in made))
    packed = stacked(
        encoder_decoder_row(made[:2], 30, 24), encoder_decoder_row(made[2:], 30, 24)
    )
    a, b = loss(v, alone)[0], loss(v, packed)[0]
    assert a.weight == b.weight == 23
    np.testing.assert_allclose(a.sum, b.sum, rtol=1e-5)
