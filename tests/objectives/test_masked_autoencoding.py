"""Masked autoencoding against float64 NumPy, and what the encoder is told."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.mae import MAE
from fmjax.models.vision.vit import ViT
from fmjax.objectives.masked_autoencoding import MaskedAutoencoding

B, N = 4, 20
ENCODER = TransformerConfig(num_layers=2, embed_dim=24, num_heads=3, dtype="float32")
DECODER = TransformerConfig(num_layers=1, embed_dim=16, num_heads=2, dtype="float32")


def objective(**kwargs):
    model = MAE(ENCODER, DECODER, image_size=(12, 10), patch_size=(3, 2))
    return MaskedAutoencoding(model, **kwargs)


def variables(obj):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(obj.init, jax.random.key(0))),
    )


def batch():
    rng = np.random.default_rng(1)
    return {
        "images": rng.normal(size=(B, 12, 10, 3)).astype(np.float32),
        "weights": np.array([1, 0, 1, 1], np.float32),
    }


def patches(images):
    cut = images.reshape(-1, 4, 3, 5, 2, 3).astype(np.float64)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), N, 18)


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_is_of_hidden_patches_alone(normalize):
    obj = objective(normalize_pixels=normalize)
    v, data = variables(obj), batch()
    keys = jax.random.split(jax.random.key(1), B)
    terms, metrics, _ = jax.jit(obj.loss)(v, data, keys)
    assert not metrics
    visible = np.asarray(obj.visible(data["images"], keys))
    assert visible.shape == (B, 5)
    painted = jax.jit(obj.model.apply)(v, data["images"], visible)["logits"]
    target = patches(data["images"])
    if normalize:
        mean = target.mean(-1, keepdims=True)
        # The paper's code divides by the unbiased deviation.
        variance = ((target - mean) ** 2).sum(-1, keepdims=True) / 17
        target = (target - mean) / np.sqrt(variance + 1e-6)
    hidden = np.ones((B, N), bool)
    hidden[np.arange(B)[:, None], visible] = False
    errors = ((np.asarray(painted, np.float64) - target) ** 2).mean(-1)
    counted = hidden * data["weights"][:, None]
    term = terms["squared_error"]
    expected = (errors * counted).sum() / counted.sum()
    np.testing.assert_allclose(term.sum / term.weight, expected, rtol=1e-5)


def test_encoder_sees_visible_patches_alone():
    obj = objective()
    v, data = variables(obj), batch()
    visible = np.asarray(obj.visible(data["images"], None))
    changed = patches(data["images"])
    seen = np.zeros((B, N), bool)
    seen[np.arange(B)[:, None], visible] = True
    changed = np.where(seen[..., None], changed, 5.0)
    changed = changed.reshape(B, 4, 5, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    changed = changed.reshape(B, 12, 10, 3).astype("f")
    run = jax.jit(obj.model.apply)
    a, b = (run(v, images, visible) for images in (data["images"], changed))
    assert a["hidden"].shape == (B, 6, 24)
    for name in ("hidden", "logits", "pooled"):
        np.testing.assert_array_equal(a[name], b[name])


def test_all_patches_seen_is_no_mask():
    obj = objective()
    v, images = variables(obj), batch()["images"]
    run = jax.jit(obj.model.apply)
    every = np.tile(np.arange(N), (B, 1))
    a, b = run(v, images), run(v, images, every)
    for name in ("hidden", "logits"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-4)


def test_masks_are_the_images_own():
    obj, images = objective(), batch()["images"]
    keys = jax.random.split(jax.random.key(1), B)
    for given, some in ((keys, keys[2:]), (None, None)):
        every = obj.visible(images, given)
        np.testing.assert_array_equal(every[2:], obj.visible(images[2:], some))
        assert len({tuple(row) for row in np.asarray(every)}) == B
    many = obj.visible(np.tile(images, (100, 1, 1, 1)), jax.random.split(keys[0], 400))
    # Each place is seen as often as any other, a quarter of the time.
    share = np.bincount(np.asarray(many).ravel(), minlength=N) / 400
    np.testing.assert_allclose(share, 0.25, atol=0.08)


def test_pictures_show_what_is_seen_as_it_is():
    obj = objective()
    v, images = variables(obj), batch()["images"]
    shown = np.asarray(jax.jit(obj.pictures)(v, {"images": images}))
    assert shown.shape == (B, 3, 12, 10, 3)
    np.testing.assert_array_equal(shown[:, 0], images)
    visible = np.asarray(obj.visible(images, None))
    seen = np.zeros((B, N), bool)
    seen[np.arange(B)[:, None], visible] = True
    true, masked, painted = (patches(shown[:, i]) for i in range(3))
    np.testing.assert_array_equal(masked, np.where(seen[..., None], true, 0))
    np.testing.assert_array_equal(painted[seen], true[seen])
    # In the units of the true patch.
    logits = jax.jit(obj.model.apply)(v, images, visible)["logits"]
    deviation = true.std(-1, keepdims=True, ddof=1)
    want = np.asarray(logits) * deviation + true.mean(-1, keepdims=True)
    np.testing.assert_allclose(painted[~seen], want[~seen], rtol=1e-4, atol=1e-4)


def test_rows_and_models_that_do_not_fit_are_refused():
    objective().check({"images": (12, 10, 3), "weights": (), "labels": ()}, 0)
    with pytest.raises(UserError, match=r"mae\.image_size"):
        objective().check({"images": (12, 12, 3), "weights": ()}, 0)
    for share in (0.0, 0.97):
        with pytest.raises(UserError, match="mask_ratio"):
            objective(mask_ratio=share).check({"images": (12, 10, 3), "weights": ()}, 0)
    with pytest.raises(UserError, match="mask_ratio"):
        objective(mask_ratio=1.0)
    with pytest.raises(UserError, match=r"masked_autoencoding\.model"):
        MaskedAutoencoding(ViT(ENCODER, image_size=8, patch_size=4))
