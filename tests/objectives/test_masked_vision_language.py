"""Masked patches and words against float64 NumPy; what each is told of the other."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.m3ae import M3AE
from fmjax.models.vision.mae import MAE
from fmjax.objectives.masked_autoencoding import MaskedAutoencoding
from fmjax.objectives.masked_vision_language import MaskedVisionLanguage

B, N, T, V = 4, 20, 9, 30
SIZES = {"num_heads": 2, "dtype": "float32", "scan_layers": False}
ENCODER = TransformerConfig(num_layers=2, embed_dim=24, **SIZES)
DECODER = TransformerConfig(num_layers=1, embed_dim=16, **SIZES)
IMAGE = {"image_size": (12, 10), "patch_size": (3, 2)}


def objective(**kwargs):
    model = M3AE(ENCODER, DECODER, **IMAGE, vocab_size=V, max_length=T)
    return MaskedVisionLanguage(model, **kwargs)


def variables(obj):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(obj.init, jax.random.key(0))),
    )


def batch():
    rng = np.random.default_rng(1)
    lengths = np.array([9, 5, 1, 7])
    return {
        "images": rng.normal(size=(B, 12, 10, 3)).astype(np.float32),
        "weights": np.array([1, 0, 1, 1], np.float32),
        "tokens": rng.integers(1, V, (B, T)).astype(np.int32),
        "padding_mask": np.arange(T) < lengths[:, None],
    }


@pytest.fixture(scope="module")
def reconstruct():
    """(batch, seen patches, seen words) → pixels and logits of words."""
    obj = objective()
    v = variables(obj)

    @jax.jit
    def run(data, visible, seen):
        text = TextInputs(data["tokens"], padding_mask=data["padding_mask"])
        args = (data["images"], text, visible, seen)
        out, words = obj.model.apply(v, *args, method="reconstruct")
        return out["logits"], obj.model.apply(v, words, method="head")

    return run


def test_losses_are_of_what_is_hidden(reconstruct):
    obj, data = objective(words=0.3, label_smoothing=0.1), batch()
    keys = jax.random.split(jax.random.key(1), B)
    terms, metrics, _ = jax.jit(obj.loss)(variables(obj), data, keys)
    visible = np.asarray(obj.visible(data["images"], keys))
    hidden = np.asarray(obj.hidden_words(data["images"], data["padding_mask"], keys))
    pixels, logits = reconstruct(data, visible, ~hidden)

    cut = data["images"].reshape(B, 4, 3, 5, 2, 3).astype(np.float64)
    true = cut.transpose(0, 1, 3, 2, 4, 5).reshape(B, N, 18)
    variance = true.var(-1, keepdims=True, ddof=1)
    true = (true - true.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    unseen = np.ones((B, N), bool)
    unseen[np.arange(B)[:, None], visible] = False
    errors = ((np.asarray(pixels, np.float64) - true) ** 2).mean(-1)
    counted = unseen * data["weights"][:, None]
    term = terms["squared_error"]
    want = (errors * counted).sum() / counted.sum()
    np.testing.assert_allclose(term.sum / term.weight, want, rtol=1e-5)

    logits = np.asarray(logits, np.float64)[..., :V]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    gold = np.take_along_axis(log_p, data["tokens"][..., None], -1)[..., 0]
    smoothed = -(0.9 * gold + 0.1 * log_p.mean(-1))
    counted = hidden * data["weights"][:, None]
    term = terms["cross_entropy"]
    assert term.coefficient == 0.3
    want = (smoothed * counted).sum() / counted.sum()
    np.testing.assert_allclose(term.sum / term.weight, want, rtol=1e-5)
    nll = metrics["nll"]
    want = -(gold * counted).sum() / counted.sum()
    np.testing.assert_allclose(nll.sum / nll.weight, want, rtol=1e-5)


@pytest.mark.parametrize("share", [0.4, 0.75, 1.0])
def test_a_share_of_the_real_words_is_hidden(share):
    obj, data = objective(word_mask_ratio=share), batch()
    lengths = data["padding_mask"].sum(1)
    want = np.maximum(np.round(share * lengths), 1)
    hidden = np.asarray(obj.hidden_words(data["images"], data["padding_mask"], None))
    np.testing.assert_array_equal(hidden.sum(1), want)
    assert not (hidden & ~data["padding_mask"]).any()
    # Every place of a text as often as any other.
    keys = jax.random.split(jax.random.key(0), 2000)
    inputs = data["images"], data["padding_mask"]
    draw = jax.jit(lambda key: obj.hidden_words(*inputs, key))
    many = np.mean([draw(keys[i : i + B]) for i in range(0, 2000, B)], axis=0)
    np.testing.assert_allclose(many[0], want[0] / 9, atol=0.1)


def test_each_side_reads_what_is_seen_of_both_and_nothing_else(reconstruct):
    obj, data = objective(), batch()
    visible = np.asarray(obj.visible(data["images"], None))
    hidden = np.asarray(obj.hidden_words(data["images"], data["padding_mask"], None))
    pixels, logits = reconstruct(data, visible, ~hidden)

    def changed(**arrays):
        return reconstruct(data | arrays, visible, ~hidden)

    def patches(where):
        grid = np.zeros((B, N), bool)
        grid[np.arange(B)[:, None], visible] = True
        grid = (grid if where == "seen" else ~grid).reshape(B, 4, 5)
        pixels = grid.repeat(3, axis=1).repeat(2, axis=2)[..., None]
        return np.where(pixels, 3.0, data["images"]).astype(np.float32)

    def words(where):
        return np.where(where, 7, data["tokens"]).astype(np.int32)

    for arrays in (
        {"images": patches("hidden")},
        {"tokens": words(hidden)},
        {"tokens": words(~data["padding_mask"])},
    ):
        painted, said = changed(**arrays)
        np.testing.assert_array_equal(painted, pixels)
        np.testing.assert_array_equal(
            said[data["padding_mask"]], logits[data["padding_mask"]]
        )
    # The third text is one word, which is hidden.
    rows = [0, 1, 3]
    for arrays in (
        {"images": patches("seen")},
        {"tokens": words(data["padding_mask"] & ~hidden)},
    ):
        for before, after in zip((pixels, logits), changed(**arrays)):
            for row in rows:
                assert np.abs(np.asarray(before - after)[row, 0]).max() > 1e-3


def test_images_alone_are_masked_autoencoding():
    obj, data = objective(), batch()
    v = variables(obj)
    alone = MaskedAutoencoding(MAE(ENCODER, DECODER, **IMAGE))
    names = jax.eval_shape(alone.init, jax.random.key(0))["params"]
    params = {name: v["params"][name] for name in names}
    visible = np.asarray(alone.visible(data["images"], None))
    want = jax.jit(alone.model.apply)({"params": params}, data["images"], visible)
    got = jax.jit(obj.model.apply)(v, data["images"], visible=visible)
    for name in ("hidden", "pooled", "logits"):
        np.testing.assert_array_equal(got[name], want[name])


def test_rows_and_models_that_do_not_fit_are_refused():
    rows = {"images": (12, 10, 3), "weights": (), "tokens": (T,), "padding_mask": (T,)}
    objective().check(rows | {"labels": ()}, V)
    for other, vocab, match in (
        ({"images": (12, 12, 3)}, V, r"m3ae\.image_size"),
        ({"tokens": (T + 1,)}, V, r"m3ae\.max_length"),
        ({}, V + 1, r"m3ae\.vocab_size"),
    ):
        with pytest.raises(UserError, match=match):
            objective().check(rows | other, vocab)
    without = {name: rows[name] for name in ("images", "weights")}
    with pytest.raises(UserError, match="'tokens'"):
        objective().check(without, V)
    for options, match in (
        ({"word_mask_ratio": 0.0}, "word_mask_ratio"),
        ({"words": -1.0}, "words"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"z_loss": -1.0}, "z_loss"),
    ):
        with pytest.raises(UserError, match=match):
            objective(**options)
    with pytest.raises(UserError, match="m3ae"):
        MaskedVisionLanguage(MAE(ENCODER, DECODER, **IMAGE))
    with pytest.raises(UserError, match=r"m3ae\.max_length"):
        M3AE(ENCODER, DECODER)
