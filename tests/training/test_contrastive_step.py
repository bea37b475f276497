"""A loss that sees the whole batch: the same on every mesh, in one piece or in four."""

import contextlib
import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from on_meshes import MESHES, OPTIMIZER, assert_same_gradients, build, gradients_of
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.simclr import SimCLR
from fmjax.models.vision.vit import ViT
from fmjax.objectives.image_text_contrast import ImageTextContrast
from fmjax.objectives.nt_xent import NTXent
from fmjax.sharding.mesh import batch_sharding, global_batch, on_mesh
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

V, B, T, SIZE = 60, 32, 6, 8
BLOCKS = TransformerConfig(
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=24,
    dropout=0.1,
    attention_dropout=0.1,
    dtype="float32",
)
MODEL = CLIP(
    image=ViT(BLOCKS, image_size=SIZE, patch_size=4),
    text=TextEncoder(BLOCKS, V, T, vocab_multiple=8),
    embed_dim=8,
    scale=5.0,
)
SOFTMAX = ImageTextContrast(MODEL, chunks=4)
SIGMOID = ImageTextContrast(MODEL.clone(bias=-2.0), output="sigmoid", chunks=4)

VIEWS = NTXent(SimCLR(MODEL.image, embed_dim=8), chunks=4)


def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, T + 1, B)
    return {
        "images": rng.normal(size=(B, SIZE, SIZE, 3)).astype(np.float32),
        "tokens": rng.integers(0, V, (B, T)).astype(np.int32),
        "padding_mask": np.arange(T) < lengths[:, None],
        "weights": (np.arange(B) % 5 != 2).astype(np.float32),
    }


def views():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(B, 2, SIZE, SIZE, 3)).astype(np.float32)
    return {"views": images, "weights": batch()["weights"]}


@pytest.mark.slow
def test_views_in_pieces_on_a_mesh_are_views_at_once_on_one_device():
    loss, gradients = gradients_of(VIEWS, views(), None)
    other = gradients_of(VIEWS, views(), MESHES["data_fsdp_tensor"], 4)
    np.testing.assert_allclose(other[0], loss, rtol=1e-5)
    assert_same_gradients(gradients, other[1])


@pytest.fixture(scope="module")
def whole():
    """The loss and the gradients on one device, in one piece."""
    return gradients_of(SOFTMAX, batch(), None)


@pytest.mark.parametrize(
    ("mesh", "microbatches"),
    [
        ("data_fsdp_tensor", 4),
        slow(None, 4),
        slow("data", 1),
        slow("fsdp", 2),
    ],
)
def test_neither_meshes_nor_microbatches_change_it(mesh, microbatches, whole):
    loss, gradients = gradients_of(SOFTMAX, batch(), MESHES.get(mesh), microbatches)
    np.testing.assert_allclose(loss, whole[0], rtol=1e-5)
    assert_same_gradients(whole[1], gradients)


@pytest.mark.slow
def test_nor_that_of_each_pair_by_itself():
    loss, gradients = gradients_of(SIGMOID, batch(), None)
    other = gradients_of(SIGMOID, batch(), MESHES["data_fsdp_tensor"], 4)
    np.testing.assert_allclose(other[0], loss, rtol=1e-5)
    assert_same_gradients(gradients, other[1])


@pytest.mark.parametrize("objective", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_the_loss_is_its_definition(objective):
    data = batch()
    variables = jax.jit(objective.init)(jax.random.key(0))
    variables = jax.tree.map(
        lambda x: x.value, variables, is_leaf=lambda x: hasattr(x, "value")
    )
    loss = jax.jit(lambda variables, data: objective.loss(variables, data, None))
    terms, metrics, _ = loss(variables, data)
    text = TextInputs(data["tokens"], padding_mask=data["padding_mask"])
    out = jax.jit(objective.model.apply)(variables, data["images"], text)
    x, y = (
        np.asarray(out[f"{side}_embeddings"], np.float64) for side in ("image", "text")
    )
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-6)
    real = data["weights"] > 0
    logits = 5.0 * x[real] @ y[real].T
    same = np.eye(real.sum(), dtype=bool)
    if objective is SOFTMAX:
        rows = np.log(np.exp(logits).sum(1)) - logits[same]
        columns = np.log(np.exp(logits).sum(0)) - logits[same]
        expected = (rows + columns).sum() / 2
    else:
        expected = np.log1p(np.exp(np.where(same, -1, 1) * (logits - 2.0))).sum()
    term = terms["contrastive"]
    assert term.weight == real.sum()
    np.testing.assert_allclose(term.sum, expected, rtol=1e-5)
    for name, axis in (("image_to_text", 1), ("text_to_image", 0)):
        right = logits.argmax(axis) == np.arange(real.sum())
        assert metrics[name].sum == right.sum()


def test_the_learned_scale_is_clipped():
    variables = {"params": {"log_scale": np.float32(9.0)}}
    out = MODEL.apply(variables, method="scaling")
    np.testing.assert_allclose(out["logit_scale"], 100.0, rtol=1e-5)
    free = MODEL.clone(max_scale=None).apply(variables, method="scaling")
    np.testing.assert_allclose(free["logit_scale"], np.exp(9.0), rtol=1e-5)


def test_a_scale_at_its_limit_can_fall_but_not_rise():
    def scale(log_scale):
        variables = {"params": {"log_scale": log_scale}}
        return MODEL.apply(variables, method="scaling")["logit_scale"]

    np.testing.assert_allclose(jax.grad(scale)(np.float32(9.0)), 100.0, rtol=1e-5)
    objective, (mesh, rules) = ImageTextContrast(MODEL), build(None)
    plan = plan_state(objective, OPTIMIZER, mesh, rules, train_steps=9)
    step = make_train_step(objective, plan, lambda step: 0.0, mesh, rules, seed=0)
    state = plan.init()
    above = jax.device_put(np.float32(9.0), state.params["log_scale"].sharding)
    state = dataclasses.replace(state, params=state.params | {"log_scale": above})
    sharding = batch_sharding(mesh, rules)
    with on_mesh(mesh, rules):
        state, _ = step(state, global_batch(batch(), sharding, B))
    np.testing.assert_allclose(state.params["log_scale"], np.log(100.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("tower", "fits"),
    [
        ({"pooling": "eos", "eos_id": 7}, 7),
        ({"pooling": "highest_id"}, V - 1),
        ({"pooling": "last_token"}, 3),
    ],
)
def test_the_token_that_stands_for_a_text_is_the_one_that_ends_it(tower, fits):
    model = MODEL.clone(text=MODEL.text.clone(**tower))
    objective = dataclasses.replace(SOFTMAX, model=model)
    for eos_id in (fits, 1):
        tokenizer = SimpleNamespace(eos_id=eos_id, vocab_size=V)
        data = SimpleNamespace(tokenizer=lambda tokenizer=tokenizer: tokenizer)
        refuses = eos_id != fits and tower["pooling"] != "last_token"
        with (
            pytest.raises(UserError, match=r"text_encoder\..*expected")
            if refuses
            else contextlib.nullcontext()
        ):
            objective.check_data(data)


def test_texts_end_at_their_last_token():
    tower = MODEL.text
    tokens = batch()["tokens"][:3]
    params = jax.jit(tower.init)(jax.random.key(0), tokens)
    lengths = np.array([2, 6, 4])
    mask = np.arange(T) < lengths[:, None]
    text = TextInputs(tokens, padding_mask=mask)
    apply = jax.jit(tower.apply)
    pooled = apply(params, text)["pooled"]
    for row, length in enumerate(lengths):
        alone = apply(params, tokens[row : row + 1, :length])["pooled"]
        np.testing.assert_allclose(pooled[row], alone[0], atol=1e-5)
    ended = np.where(mask, tokens, 0)
    ended[np.arange(3), lengths - 1] = 59
    for ids in ({"pooling": "eos", "eos_id": 59}, {"pooling": "highest_id"}):
        by_id = dataclasses.replace(tower, **ids)
        np.testing.assert_allclose(
            jax.jit(by_id.apply)(params, ended)["pooled"],
            apply(params, TextInputs(ended, padding_mask=mask))["pooled"],
            atol=1e-5,
        )
    with pytest.raises(UserError, match=r"text_encoder\.eos_id = None"):
        dataclasses.replace(tower, pooling="eos")
