"""ViT's parts against PyTorch, float64 NumPy and the papers' figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from transformers.models.siglip.modeling_siglip import (
    SiglipMultiheadAttentionPoolingHead,
    SiglipVisionConfig,
)

from fmjax.errors import UserError
from fmjax.models.layers.attention_pooling import AttentionPooling
from fmjax.models.layers.dropout import drop_path
from fmjax.models.layers.image_positions import resize_positions, sincos_2d
from fmjax.models.layers.patches import to_images, to_patches
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT

CONFIG = TransformerConfig(
    num_layers=3, embed_dim=20, num_heads=5, activation="gelu", dtype="float32"
)
SIZES = dict(image_size=(12, 18), patch_size=(4, 3), channels=2, num_classes=7)


def make(config=CONFIG, **changes):
    model = ViT(config, **(SIZES | changes))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images()))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.25, leaf.shape).astype(np.float32), shapes
    )
    return model, params["params"]


def images(rows=3, height=12, width=18):
    return np.random.default_rng(2).normal(size=(rows, height, width, 2)).astype("f")


def apply(model, params, *args, **kwargs):
    run = jax.jit(model.apply, static_argnames="hidden_states")
    return run({"params": params}, *args, **kwargs)


EVERYTHING = dict(
    pooler=True, distillation_token=True, distillation_head=True, mask_token=True
)


@pytest.mark.parametrize(
    "changes", [EVERYTHING, dict(class_token=False, pooling="attention")]
)
def test_every_parameter_has_logical_axes(changes):
    config = dataclasses.replace(CONFIG, layer_scale=0.1)
    model = ViT(config, **(SIZES | changes))
    boxed = jax.eval_shape(model.init, jax.random.key(0), images())
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert isinstance(leaf, nn.Partitioned)
        assert len(leaf.names) == leaf.value.ndim


def test_patches_are_what_a_convolution_reads():
    model, params = make()
    kernel = params["patches"]["kernel"]
    convolved = jax.lax.conv_general_dilated(
        images(), kernel, (4, 3), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    want = convolved.reshape(3, -1, 20) + params["patches"]["bias"]
    want = want + params["patches"]["positions"][1:]
    got = model.apply({"params": params}, images(), method=lambda m, x: m.patches(x))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_patches_become_the_image_again():
    there = to_patches(images(), (4, 3))
    assert there.shape == (3, 18, 24)
    np.testing.assert_array_equal(to_images(there, (3, 6), (4, 3)), images())


def test_sincos_positions_against_complex_numbers():
    # e^(i · place · frequency): real parts are cosines, imaginary ones sines.
    got = sincos_2d((3, 5), 12)
    frequency = 10000.0 ** -(np.arange(3) / 3)
    for row in range(3):
        for column in range(5):
            x, y = (np.exp(1j * place * frequency) for place in (column, row))
            want = np.concatenate([x.imag, x.real, y.imag, y.real])
            np.testing.assert_allclose(got[5 * row + column], want, atol=1e-6)


@pytest.mark.parametrize("new", [(4, 4), (7, 3), (2, 9), (13, 13)])
def test_resized_positions_are_pytorchs(new):
    table = np.random.default_rng(0).normal(size=(2 + 4 * 5, 6)).astype("f")
    square = torch.tensor(table[2:]).reshape(1, 4, 5, 6).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(
        square, size=new, mode="bicubic", align_corners=False
    )
    want = want.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    for given in (table, jnp.asarray(table)):
        got = resize_positions(given, (4, 5), new, prefix=2)
        assert type(got) is type(given)
        np.testing.assert_array_equal(got[:2], table[:2])
        np.testing.assert_allclose(got[2:], want, atol=1e-5)
    assert resize_positions(table, (4, 5), (4, 5), prefix=2) is table


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_images_of_another_size_have_more_patches(positions):
    model, params = make(positions=positions)
    out = apply(model, params, images(height=20, width=15))
    assert out["hidden"].shape == (3, 1 + 25, 20)
    assert out["logits"].shape == (3, 7)


def test_what_stands_for_the_image():
    for pooling, want in {
        "class_token": lambda x: x[:, 0],
        "average": lambda x: x[:, 2:].mean(1),
        "class_token_and_average": lambda x: np.concatenate(
            [x[:, 0], x[:, 2:].mean(1)], -1
        ),
    }.items():
        model, params = make(pooling=pooling, distillation_token=True)
        out = apply(model, params, images())
        pooled = want(np.asarray(out["hidden"], np.float64))
        np.testing.assert_allclose(out["pooled"], pooled, rtol=1e-4, atol=1e-5)
        head = params["classifier"]
        logits = pooled @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(out["logits"], logits, rtol=1e-4, atol=1e-4)


def test_attention_pooling_is_siglips():
    torch.manual_seed(0)
    theirs = SiglipMultiheadAttentionPoolingHead(
        SiglipVisionConfig(
            hidden_size=20,
            num_attention_heads=5,
            intermediate_size=28,
            hidden_act="gelu",
            layer_norm_eps=1e-5,
        )
    )
    weights = {n: w.detach().numpy() for n, w in theirs.named_parameters()}
    rng = np.random.default_rng(0)
    for weight in weights.values():
        weight += rng.normal(0, 0.2, weight.shape).astype("f")
    into, offsets = (weights[f"attention.in_proj_{n}"] for n in ("weight", "bias"))
    attention = {"out_bias": weights["attention.out_proj.bias"]}
    attention["out"] = weights["attention.out_proj.weight"].T.reshape(5, 4, 20)
    for i, name in enumerate(("query", "key", "value")):
        part = slice(20 * i, 20 * (i + 1))
        attention[name] = into[part].T.reshape(20, 5, 4)
        attention[f"{name}_bias"] = offsets[part].reshape(5, 4)
    params = {
        "query": weights["probe"][0],
        "attention": attention,
        "norm": {
            "scale": weights["layernorm.weight"],
            "bias": weights["layernorm.bias"],
        },
        "mlp": {
            "in": weights["mlp.fc1.weight"].T,
            "in_bias": weights["mlp.fc1.bias"],
            "out": weights["mlp.fc2.weight"].T,
            "out_bias": weights["mlp.fc2.bias"],
        },
    }
    x = rng.normal(size=(2, 9, 20)).astype("f")
    config = dataclasses.replace(CONFIG, mlp_dim=28)
    pool = AttentionPooling(config, queries=1, feed_forward=True)
    got = apply(pool, params, x, None)[:, 0]
    with torch.no_grad():
        want = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_masked_patches_are_not_seen():
    model, params = make(mask_token=True)
    masked = np.arange(18) % 3 == 0
    changed = images().reshape(3, 3, 4, 6, 3, 2)
    where = masked.reshape(1, 3, 1, 6, 1, 1)
    changed = np.where(where, 9.0, changed).reshape(images().shape).astype("f")
    masked = np.tile(masked, (3, 1))
    a, b = (apply(model, params, x, masked)["hidden"] for x in (images(), changed))
    np.testing.assert_array_equal(a, b)
    plain = apply(model, params, images())["hidden"]
    assert np.abs(a - plain).max() > 1e-2


def test_layer_scale_and_skipped_layers():
    config = dataclasses.replace(CONFIG, layer_scale=0.0, stochastic_depth=0.5)
    model, params = make(config)
    layers = params["stack"]["layers"]
    for name in ("attention_scale", "mlp_scale"):
        assert layers[name].shape == (3, 20)
        layers[name] *= 0
    states = apply(model, params, images(), hidden_states=True)["hidden_states"]
    # Layers add nothing.
    np.testing.assert_array_equal(states[1], states[0])
    np.testing.assert_array_equal(states[2], states[0])


def test_depth_is_each_examples_own_and_grows_with_the_layer():
    config = dataclasses.replace(CONFIG, stochastic_depth=0.6)
    model, params = make(config)
    rows = 400
    x = np.repeat(images(1), rows, 0)
    keys = jax.random.split(jax.random.key(0), rows)
    states = apply(model, params, x, keys=keys, hidden_states=True)["hidden_states"]
    # An image that skips both parts of a layer leaves it as it came.
    for layer, rate in enumerate((0.2, 0.4)):
        same = (np.asarray(states[layer + 1]) == np.asarray(states[layer])).all((1, 2))
        np.testing.assert_allclose(same.mean(), rate**2, atol=0.05)
    some = apply(model, params, x[3:9], keys=keys[3:9], hidden_states=True)
    np.testing.assert_allclose(some["hidden_states"], states[:, 3:9], atol=1e-5)


def test_examples_that_stay_are_scaled_up():
    keys = jax.random.split(jax.random.key(1), 2000)
    y = drop_path(jnp.ones((2000, 3, 2)), 0.25, keys)
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    np.testing.assert_allclose(y.mean(), 1, atol=0.05)
    assert drop_path(y, 0.25, None) is y


@pytest.mark.parametrize(
    ("layers", "width", "heads", "patch", "gmacs"),
    [(12, 384, 6, 16, 4.61), (12, 768, 12, 16, 17.58), (24, 1024, 16, 16, 61.60)],
)
def test_flops_are_the_published_ones(layers, width, heads, patch, gmacs):
    # Multiply-adds of a forward pass, as timm lists them.
    config = TransformerConfig(num_layers=layers, embed_dim=width, num_heads=heads)
    model = ViT(config, patch_size=patch, num_classes=1000)
    x = jnp.zeros((1, 224, 224, 3))
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), x))["params"]
    # Six FLOPs of training for each.
    found = model.train_flops_per_image(params) / 6e9
    np.testing.assert_allclose(found, gmacs, rtol=0.005)
    larger = model.train_flops_per_image(params, (448, 448)) / 6e9
    assert larger > 4 * found


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_size": 5}, "vit.patch_size"),
        ({"image_size": 0}, "vit.image_size"),
        ({"channels": 0}, "vit.channels"),
        ({"num_classes": -1}, "vit.num_classes"),
        ({"class_token": False}, "vit.class_token"),
        ({"distillation_head": True}, "vit.distillation_head"),
        ({"pooled_norm": True, "pooling": "none", "num_classes": 0}, "vit.pooled_norm"),
        ({"pooled_norm": True, "distillation_token": True}, "vit.pooled_norm"),
        (
            {"interpolation": "bilinear_antialiased", "positions": "sincos"},
            "vit.interpolation",
        ),
        (
            {"class_token": False, "pooling": "average", "distillation_token": True},
            "vit.distillation_token",
        ),
    ],
)
def test_impossible_models_are_refused_by_name(changes, named):
    with pytest.raises(UserError, match=named):
        ViT(CONFIG, **(SIZES | changes))


@pytest.mark.parametrize(
    ("shape", "named"),
    [((1, 12, 17, 2), "vit.patch_size"), ((1, 12, 18, 3), "vit.channels")],
)
def test_images_that_do_not_fit_are_refused(shape, named):
    model, params = make()
    with pytest.raises(UserError, match=named):
        model.apply({"params": params}, np.zeros(shape, "f"))


def test_masks_need_a_mask_token():
    model, params = make()
    with pytest.raises(UserError, match="mask_token"):
        model.apply({"params": params}, images(), np.zeros((3, 18), bool))


def test_sincos_positions_need_a_width_of_fours():
    config = dataclasses.replace(CONFIG, embed_dim=30)
    with pytest.raises(UserError, match=r"transformer\.embed_dim"):
        make(config, positions="sincos")
