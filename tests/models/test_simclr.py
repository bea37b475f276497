"""SimCLR's head is its definition; each of two views goes through by itself."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.simclr import SimCLR
from fmjax.models.vision.vit import ViT

CONFIG = TransformerConfig(
    num_layers=2, embed_dim=20, num_heads=5, dropout=0.2, dtype="float32"
)
ENCODER = ViT(CONFIG, image_size=(8, 12), patch_size=4, channels=2)
MODEL = SimCLR(ENCODER, embed_dim=6, head_dim=14)


def views(rows=3):
    return np.random.default_rng(0).normal(size=(rows, 2, 8, 12, 2)).astype("f")


@pytest.fixture(scope="module")
def variables():
    shapes = nn.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), views()[:, 0]))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype("f"), shapes)


def embed(variables, views, keys=None):
    return jax.jit(lambda *args: MODEL.apply(*args, method="embed_views"))(
        variables, views, keys
    )


def test_the_head_is_two_layers_and_unit_length(variables):
    out = jax.jit(MODEL.apply)(variables, views()[:, 0])
    params = jax.tree.map(lambda x: x.astype(np.float64), variables["params"])
    first, second = params["head_in"], params["head_out"]
    assert set(first) == {"kernel", "bias"}
    assert set(second) == {"kernel"}
    inner = np.asarray(out["pooled"], np.float64) @ first["kernel"] + first["bias"]
    expected = np.maximum(inner, 0) @ second["kernel"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(out["image_embeddings"], expected, atol=1e-5)
    # What is kept is the encoder's own.
    own = {"params": variables["params"]["encoder"]}
    alone = jax.jit(ENCODER.apply)(own, views()[:, 0])
    np.testing.assert_allclose(out["pooled"], alone["pooled"], atol=1e-6)


def test_views_are_embedded_one_by_one(variables):
    both, apply = embed(variables, views()), jax.jit(MODEL.apply)
    assert both.shape == (3, 2, 6)
    for view in range(2):
        alone = apply(variables, views()[:, view])["image_embeddings"]
        np.testing.assert_allclose(both[:, view], alone, atol=1e-5)


def test_each_view_has_dropout_of_its_own(variables):
    same = np.repeat(views()[:, :1], 2, axis=1)
    keys = jax.random.split(jax.random.key(3), 3)
    one, other = np.moveaxis(np.asarray(embed(variables, same, keys)), 1, 0)
    assert (np.abs(one - other).max(1) > 1e-3).all()
    one, other = np.moveaxis(np.asarray(embed(variables, same)), 1, 0)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_does_not_fit_is_refused():
    for name in ("embed_dim", "head_dim"):
        with pytest.raises(UserError, match=rf"simclr\.{name} = 0"):
            MODEL.clone(**{name: 0})
    with pytest.raises(UserError, match="simclr"):
        MODEL.clone(encoder=dataclasses.replace(ENCODER, num_classes=3))
