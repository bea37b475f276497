"""Contrast and captions of one forward pass: their definition, meshes, accumulation."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from on_meshes import (
    MESHES,
    assert_same_gradients,
    build,
    gradients_of,
    random_state,
)

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.caption_decoder import CaptionDecoder
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.multimodal.coca import CoCa
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.vit import ViT
from fmjax.objectives.contrastive_captioning import ContrastiveCaptioning

V, B, T, SIZE = 60, 16, 6, 8
BLOCKS = TransformerConfig(
    num_layers=1,
    embed_dim=32,
    num_heads=2,
    mlp_dim=24,
    dropout=0.1,
    dtype="float32",
    scan_layers=False,
)
EXPERTS = dataclasses.replace(BLOCKS, bias=False, experts=Experts(4))
IMAGE = ViT(BLOCKS, image_size=SIZE, patch_size=4, class_token=False, pooling="none")
TEXT = CaptionDecoder(BLOCKS, BLOCKS, V, T, start_id=1, vocab_multiple=8)
MODEL = CoCa(image=IMAGE, text=TEXT, embed_dim=8, caption_queries=3, scale=5.0)
OBJECTIVE = ContrastiveCaptioning(MODEL, chunks=4, contrastive=0.7, captioning=1.9)


def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, T + 1, B)
    return {
        "images": rng.normal(size=(B, SIZE, SIZE, 3)).astype(np.float32),
        "tokens": rng.integers(0, V, (B, T)).astype(np.int32),
        "padding_mask": np.arange(T) < lengths[:, None],
        "weights": (np.arange(B) % 5 != 2).astype(np.float32),
    }


def state(mesh):
    """Random, with queries that differ enough for poolers to have clear gradients."""
    drawn = random_state(OBJECTIVE, *build(mesh))

    def draw(path, leaf):
        learned = path[-1].key == "query" and leaf.ndim == 2
        return leaf * 30 if learned else leaf

    params = jax.tree_util.tree_map_with_path(draw, drawn.params)
    return dataclasses.replace(drawn, params=params)


@pytest.mark.slow
def test_neither_meshes_nor_microbatches_change_it():
    mesh = MESHES["data_fsdp_tensor"]
    loss, gradients = gradients_of(OBJECTIVE, batch(), None, 1, state(None))
    other, others = gradients_of(OBJECTIVE, batch(), mesh, 4, state(mesh))
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    assert_same_gradients(gradients, others)


@pytest.mark.parametrize("start_id", [1, None])
def test_the_losses_are_their_definitions(start_id):
    text = TEXT.clone(start_id=start_id, multimodal=EXPERTS)
    model = MODEL.clone(text=text)
    objective = dataclasses.replace(OBJECTIVE, model=model, load_balance=1e-2)
    data = batch()
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype("f"), shapes
    )

    @jax.jit
    def both(variables):
        text = TextInputs(data["tokens"], padding_mask=data["padding_mask"])
        read = (data["images"], text)
        hidden = model.apply(variables, *read, method="hidden")
        loss = objective.loss(variables, data, None)
        return model.apply(variables, *read), hidden["router"], loss

    out, router, (terms, metrics, _) = both(variables)
    real = data["weights"] > 0
    x, y = (
        np.asarray(out[f"{side}_embeddings"], np.float64)[real]
        for side in ("image", "text")
    )
    products = np.exp(float(variables["params"]["log_scale"])) * x @ y.T
    match = np.diag(products)
    contrastive = (
        np.log(np.exp(products).sum(1)) + np.log(np.exp(products).sum(0)) - 2 * match
    ).sum() / 2

    nll, right, count = 0.0, 0, 0
    for row in np.flatnonzero(real):
        texts = data["tokens"][row][data["padding_mask"][row]]
        logits = np.asarray(out["logits"][row], np.float64)
        # With a start id the first token is predicted too, and from it; else from BOS.
        targets = texts if start_id is not None else texts[1:]
        for place, target in enumerate(targets):
            nll += np.log(np.exp(logits[place]).sum()) - logits[place, target]
            right += logits[place].argmax() == target
            count += 1
    term = terms["captioning"]
    assert (term.weight, term.coefficient) == (count, 1.9)
    np.testing.assert_allclose(term.sum, nll, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"].sum, nll, rtol=1e-5)
    assert metrics["accuracy"].sum == right
    # A caption of BOS alone has no targets.
    counted = real & (data["padding_mask"].sum(1) > (start_id is None))
    balance = router["load_balance"].mean(0)[counted].sum()
    np.testing.assert_allclose(terms["load_balance"].sum, balance, rtol=1e-5)
    term = terms["contrastive"]
    assert (term.weight, term.coefficient) == (real.sum(), 0.7)
    np.testing.assert_allclose(term.sum, contrastive, rtol=1e-5)


def test_mistakes_are_named():
    gpt = GPT(BLOCKS, V, T)
    tower = TextEncoder(BLOCKS, V, T)
    clip = CLIP(image=IMAGE.clone(pooling="average"), text=tower)
    for model in (gpt, clip):
        with pytest.raises(UserError, match=r"contrastive_captioning\.model = @"):
            ContrastiveCaptioning(model)
    for option in ({"captioning": -1.0}, {"chunks": 0}, {"head_chunks": 1}):
        (name,) = option
        with pytest.raises(UserError, match=rf"contrastive_captioning\.{name} = "):
            ContrastiveCaptioning(MODEL, **option)
    rows = {"images": (SIZE, SIZE, 3), "weights": (), "padding_mask": (T,)}
    OBJECTIVE.check(rows | {"tokens": (T,), "labels": ()}, V)
    named = r"images\.caption_length.* caption_decoder\.max_length = 6"
    with pytest.raises(UserError, match=named):
        OBJECTIVE.check(rows | {"tokens": (T + 1,)}, V)
