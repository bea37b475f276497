"""ELECTRA's two losses against float64 NumPy, and what the generator draws."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import mannwhitneyu

from fmjax.models.language.electra import Electra
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.replaced_token_detection import ReplacedTokenDetection
from fmjax.objectives.terms import total

V, B, T, MASK, DRAWN = 71, 6, 17, 4, 20
DISCRIMINATOR = TransformerConfig(
    num_layers=2, embed_dim=24, num_heads=3, norm_position="post", dtype="float32"
)
GENERATOR = dataclasses.replace(DISCRIMINATOR, embed_dim=12, num_heads=2, num_layers=1)
MODEL = Electra(DISCRIMINATOR, GENERATOR, V, T, embed_dim=16)


def variables(certain: bool):
    """Random parameters; with `certain` the generator draws `DRAWN` always."""
    rng = np.random.default_rng(0)
    obj = ReplacedTokenDetection(MODEL)
    v = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(obj.init, jax.random.key(0))),
    )
    if certain:
        v["params"]["masked_head"]["vocabulary"]["bias"][DRAWN] = 1e4
    return v


def batch(seed=1):
    rng = np.random.default_rng(seed)
    real = np.arange(T) < rng.integers(8, T + 1, (B, 1))
    originals = rng.integers(15, 25, (B, T)) * real
    chosen = (rng.random((B, T)) < 0.4) & real
    return originals, {
        "tokens": np.where(chosen, MASK, originals).astype(np.int32),
        "targets": np.where(chosen, originals, 0).astype(np.int32),
        "weights": chosen.astype(np.float32),
        "segment_ids": real.astype(np.int32),
    }


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), B)


def loss(obj, v, data, rng):
    return jax.jit(obj.loss)(v, data, rng)


@pytest.mark.parametrize("limit", [None, 3])
def test_detection_is_over_every_real_token(limit):
    obj = ReplacedTokenDetection(MODEL, max_predictions=limit)
    v, (originals, data) = variables(certain=True), batch()
    terms, metrics, _ = loss(obj, v, data, keys())
    assert "auc" not in metrics

    chosen = data["weights"] > 0
    if limit is not None:
        chosen &= chosen.cumsum(1) <= limit
    corrupted = np.where(chosen, DRAWN, originals)
    replaced = corrupted != originals
    assert 0 < (chosen & ~replaced).sum()  # What was restored counts as real.
    text = TextInputs(corrupted, segment_ids=data["segment_ids"])
    logits = jax.jit(MODEL.apply)(v, text)["logits"]
    logits = np.asarray(logits, np.float64)
    real = data["segment_ids"] > 0
    nll = np.log1p(np.exp(np.where(replaced, -logits, logits)))
    np.testing.assert_allclose(terms["detection"].sum, nll[real].sum(), rtol=1e-5)
    assert terms["detection"].weight == real.sum()
    assert terms["detection"].coefficient == 50.0
    right = ((logits > 0) == replaced)[real].sum()
    assert metrics["detection_accuracy"].sum == right
    assert metrics["replaced"].sum == replaced[real].sum()
    # Counted in evaluation alone, where a certain generator draws the same.
    metrics = loss(obj, v, data, None).metrics
    pairs, in_order = 0, 0.0
    for row in range(B):
        bad = logits[row][real[row] & replaced[row]]
        good = logits[row][real[row] & ~replaced[row]]
        pairs += len(bad) * len(good)
        if len(bad) and len(good):
            in_order += mannwhitneyu(bad, good).statistic
    assert metrics["auc"].weight == pairs
    np.testing.assert_allclose(metrics["auc"].sum, in_order, rtol=1e-6)
    # The generator's own loss is of the chosen tokens alone.
    assert terms["cross_entropy"].weight == chosen.sum()


def test_the_generator_learns_to_predict_and_not_to_fool():
    v, (_, data) = variables(certain=False), batch()

    def gradient(detection):
        obj = ReplacedTokenDetection(MODEL, detection=detection)
        return jax.jit(jax.grad(lambda v: total(obj.loss(v, data, keys())[0])))(v)

    without, with_it = gradient(0.0)["params"], gradient(50.0)["params"]
    for part in ("generator_stack", "masked_head"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            without[part],
            with_it[part],
        )
    # The table is shared, so both losses teach it.
    table = lambda g: g["tokens"]["table"]  # noqa: E731
    assert np.abs(table(without) - table(with_it)).max() > 1e-3


def test_draws_follow_the_generator():
    # The same row with 4,000 keys: frequencies within five standard deviations.
    obj = ReplacedTokenDetection(MODEL)
    v, (_, data) = variables(certain=False), batch()
    n = 4000

    @jax.jit
    def apart(v, text):
        hidden = MODEL.apply(v, text, method="generator_hidden")["hidden"][:, :3]
        return hidden, MODEL.apply(v, hidden, method="generator_head")

    text = TextInputs(data["tokens"][:1], segment_ids=data["segment_ids"][:1])
    hidden, logits = apart(v, text)
    p = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)[0, :, :V]
    keys = jax.random.split(jax.random.key(3), n)
    drawn = obj._draw(v, np.repeat(hidden, n, axis=0), keys, length=3)
    for place in range(3):
        counts = np.bincount(np.asarray(drawn)[:, place], minlength=V)
        assert len(counts) == V  # Never vocabulary padding.
        spread = np.sqrt(n * p[place] * (1 - p[place]))
        assert (np.abs(counts - n * p[place]) < 5 * spread + 1).all()


def test_evaluation_draws_by_example_and_not_by_batch():
    obj = ReplacedTokenDetection(MODEL)
    v, (_, data) = variables(certain=False), batch()
    terms, _, _ = loss(obj, v, data, None)
    order = np.array([3, 1, 5, 0, 2, 4])
    shuffled, _, _ = loss(obj, v, {n: a[order] for n, a in data.items()}, None)
    np.testing.assert_allclose(
        terms["detection"].sum, shuffled["detection"].sum, rtol=1e-5
    )
