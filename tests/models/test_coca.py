"""CoCa: who sees whom, and captions with a cache as without."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.layers.attention_pooling import AttentionPooling
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.caption_decoder import CaptionDecoder
from fmjax.models.multimodal.coca import CoCa
from fmjax.models.vision.vit import ViT

B, T, V = 3, 6, 30
TEXT = TransformerConfig(num_layers=2, embed_dim=20, num_heads=4)
IMAGE = dataclasses.replace(TEXT, embed_dim=24)


def build(start_id=1, text=TEXT, **options):
    """A model with parameters far from zero, so that every part shows."""
    model = CoCa(
        image=ViT(IMAGE, image_size=8, patch_size=4, class_token=False, pooling="none"),
        text=CaptionDecoder(text, text, V, T, start_id, vocab_multiple=8),
        **{"embed_dim": 10, "caption_queries": 5} | options,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(), tokens())
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype("f"),
        nn.unbox(shapes)["params"],
    )
    return model, params


def images(seed=0):
    return np.random.default_rng(seed).normal(size=(B, 8, 8, 3)).astype("f")


def tokens(seed=0):
    return np.random.default_rng(seed).integers(2, V, (B, T)).astype("i")


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, params, *args, method=None):
    return model.apply({"params": params}, *args, method=method)


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def whole(built):
    return apply(*built, images(), tokens())


def test_outputs_have_their_shapes(whole):
    shapes = {name: x.shape for name, x in whole.items()}
    assert shapes == {
        "logit_scale": (),
        "image_hidden": (B, 4, 24),
        "image_encoder_hidden": (B, 5, 24),
        "image_pooled": (B, 24),
        "image_embeddings": (B, 10),
        "text_hidden": (B, T + 1, 20),
        "text_pooled": (B, 20),
        "text_embeddings": (B, 10),
        "hidden": (B, T + 1, 20),
        "logits": (B, T + 1, V),
    }
    for side in ("image", "text"):
        lengths = np.linalg.norm(whole[f"{side}_embeddings"], axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 3, 5])
def test_no_token_sees_what_follows_and_cls_sees_all(place, built, whole):
    model, params = built
    changed = tokens()
    changed[:, place] = (changed[:, place] - 1) % (V - 2) + 2
    assert (changed != tokens()).sum() == B
    # [CLS] too: were it seen, its vector would tell of the change.
    params = {**params, "text": {**params["text"], "cls": params["text"]["cls"] + 1}}
    out = apply(model, params, images(), changed)
    for name in ("text_hidden", "logits"):
        # Behind the start id, token i is read at place i + 1.
        np.testing.assert_allclose(
            out[name][:, : place + 1], whole[name][:, : place + 1], atol=1e-5
        )
        differs = np.abs(out[name] - whole[name])[:, place + 1 :].max((0, 2))
        assert differs.min() > 1e-3
    changed_alone = apply(*built, None, changed)["text_embeddings"]
    moved = np.abs(changed_alone - whole["text_embeddings"]).max(1)
    assert moved.min() > 1e-4


def test_the_text_is_embedded_without_the_image(built, whole):
    alone = apply(*built, None, tokens())
    other = apply(*built, images(seed=5), tokens())
    for out in (alone, other):
        np.testing.assert_allclose(
            out["text_embeddings"], whole["text_embeddings"], atol=1e-5
        )
    assert "logits" not in alone
    assert np.abs(other["logits"] - whole["logits"]).max() > 1e-2


def test_padding_changes_nothing(built):
    model, params = built
    mask = np.arange(T) < np.array([2, 6, 4])[:, None]
    out = apply(model, params, images(), TextInputs(tokens(), padding_mask=mask))
    alone = apply(model, params, images()[:1], tokens()[:1, :2])
    np.testing.assert_allclose(
        out["text_embeddings"][:1], alone["text_embeddings"], atol=1e-5
    )
    np.testing.assert_allclose(out["logits"][:1, :3], alone["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("start_id", "text"),
    [(1, TEXT), (None, TEXT), (1, dataclasses.replace(TEXT, qk_norm=True))],
)
def test_captions_with_a_cache_are_those_without(start_id, text):
    model, params = build(start_id, text)
    want = apply(model, params, images(), tokens())["hidden"]
    ids = tokens()
    if start_id is not None:
        ids = np.pad(ids, [(0, 0), (1, 0)], constant_values=start_id)
    source = apply(model, params, images(), method="embed_images")[
        "image_encoder_hidden"
    ]
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)

    decode = functools.partial(apply, model, params, method="decode")
    # Some at once, the others one by one; the image is seen once.
    many, cache = ids.shape[1] - 2, model.empty_cache(B, ids.shape[1])
    got, cache = decode(ids[:, :many], source, places[:, :many], cache)
    got = [got]
    for i in range(many, ids.shape[1]):
        one = slice(i, i + 1)
        hidden, cache = decode(ids[:, one], None, places[:, one], cache)
        got.append(hidden)
    np.testing.assert_allclose(np.concatenate(got, 1), want, atol=1e-5)


def test_the_poolers_are_in_cascade(built, whole):
    _, params = built
    found = whole["image_hidden"]
    for name, queries in (("caption", 5), ("contrastive", 1)):
        pool = AttentionPooling(IMAGE, queries, False)
        weights = params[f"{name}_pool"]
        got = apply(pool, weights, found, None)
        np.testing.assert_allclose(got, pooled(weights, found), atol=1e-4)
        found = got
    np.testing.assert_allclose(whole["image_pooled"], found[:, 0], atol=1e-5)


def pooled(weights, x):
    """Attention of learned queries and a norm, in float64."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    a, x = w["attention"], np.asarray(x, np.float64)
    q = np.einsum("qd,dhk->qhk", w["query"], a["query"]) + a["query_bias"]
    k, v = (
        np.einsum("bsd,dhk->bshk", x, a[name]) + a[f"{name}_bias"]
        for name in ("key", "value")
    )
    scores = np.exp(np.einsum("qhk,bshk->bhqs", q, k) / np.sqrt(q.shape[-1]))
    share = scores / scores.sum(-1, keepdims=True)
    found = np.einsum("bhqs,bshk,hkd->bqd", share, v, a["out"]) + a["out_bias"]
    centred = found - found.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + IMAGE.norm_epsilon)
    return centred / deviation * w["norm"]["scale"] + w["norm"]["bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: build(caption_queries=0), r"coca\.caption_queries = 0"),
        (lambda: build(start_id=V), r"caption_decoder\.start_id = 30"),
        (lambda: build()[0].clone(embed_dim=0), r"coca\.embed_dim = 0"),
        (
            lambda: build()[0].clone(image=ViT(IMAGE)),
            r"vit\.pooling = 'class_token' in @coca\(\)",
        ),
        (
            lambda: CaptionDecoder(TEXT, IMAGE, V, T, 1),
            r"transformer\.embed_dim = 20",
        ),
        (
            lambda: CaptionDecoder(
                dataclasses.replace(TEXT, window=4), TEXT, V, T, None
            ),
            r"transformer\.window = 4",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=message):
        change()
