"""Labels of texts and of tokens against PyTorch's losses."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn
from torch.nn import functional

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.text_classification import TextClassification
from fmjax.objectives.token_classification import TokenClassification

B, T, V, K = 6, 9, 40, 4
CONFIG = TransformerConfig(num_layers=1, embed_dim=12, num_heads=3, dtype="float32")
SIZES = {"vocab_size": V, "max_length": 16, "vocab_multiple": 8}
LENGTHS = np.array([9, 4, 1, 7, 9, 2])
COUNTED = np.array([1, 1, 0, 1, 1, 1], np.float32)
MODELS = {
    "encoder": Bert(CONFIG, **SIZES, pooler="tanh", pooling="mean", num_classes=K),
    "decoder": GPT(CONFIG, **SIZES, num_classes=K),
    "encoder_decoder": Seq2Seq(
        CONFIG, CONFIG, **SIZES, positions="learned", num_classes=K
    ),
}


@functools.cache
def variables_of(objective):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(objective.init, jax.random.key(0))),
    )


def rows(labels):
    rng = np.random.default_rng(1)
    return {
        "tokens": rng.integers(3, V, (B, T)).astype(np.int32),
        "segment_ids": (np.arange(T) < LENGTHS[:, None]).astype(np.int32),
        "labels": labels,
        "weights": COUNTED,
    }


def classes():
    return np.random.default_rng(2).integers(0, K, B).astype(np.int32)


def losses(objective, batch):
    """The logits, and the mean of the loss's term and of the accuracy."""
    v = variables_of(objective)
    found = jax.jit(lambda v, b: objective.loss(v, b, None))(v, batch)
    (term,) = found.terms.values()
    metrics = {name: float(m.sum / m.weight) for name, m in found.metrics.items()}
    logits = torch.tensor(np.asarray(objective.predict(v, batch)))
    return logits, float(term.sum / term.weight), metrics


def mean(values):
    return float((values.numpy() * COUNTED).sum() / COUNTED.sum())


@pytest.mark.parametrize("family", MODELS)
def test_loss_is_the_cross_entropy_of_pytorch(family):
    objective = TextClassification(
        MODELS[family], label_smoothing=0.2, class_weights=(0.5, 3.0, 1.0, 2)
    )
    logits, loss, metrics = losses(objective, rows(classes()))
    expected = functional.cross_entropy(
        logits,
        torch.tensor(classes()).long(),
        weight=torch.tensor([0.5, 3.0, 1.0, 2.0]),
        label_smoothing=0.2,
        reduction="none",
    )
    np.testing.assert_allclose(loss, mean(expected), rtol=1e-5)
    right = (logits.numpy().argmax(1) == classes()).astype(float)
    np.testing.assert_allclose(metrics["accuracy"], mean(torch.tensor(right)))


def test_loss_of_several_labels_is_the_binary_one_of_pytorch():
    objective = TextClassification(
        MODELS["decoder"], class_weights=(1.0, 3.0, 0.5, 2.0), output="sigmoid"
    )
    labels = (np.random.default_rng(4).random((B, K)) < 0.4).astype(np.float32)
    logits, loss, metrics = losses(objective, rows(labels))
    expected = functional.binary_cross_entropy_with_logits(
        logits,
        torch.tensor(labels),
        weight=torch.tensor([1.0, 3.0, 0.5, 2.0]),
        reduction="none",
    )
    np.testing.assert_allclose(loss, mean(expected.sum(1)), rtol=1e-5)
    right = ((logits.numpy() > 0) == (labels > 0)).all(1).astype(float)
    np.testing.assert_allclose(metrics["accuracy"], mean(torch.tensor(right)))


def test_loss_of_numbers_is_their_squared_error():
    model = MODELS["encoder"].clone(num_classes=1)
    objective = TextClassification(model, output="regression")
    labels = np.random.default_rng(5).normal(size=B).astype(np.float32)
    logits, loss, metrics = losses(objective, rows(labels))
    expected = functional.mse_loss(logits[:, 0], torch.tensor(labels), reduction="none")
    np.testing.assert_allclose(loss, mean(expected), rtol=1e-5)
    assert metrics == {}


def test_loss_of_tokens_is_that_of_pytorch_without_ignored_ones():
    model = Bert(CONFIG, **SIZES, token_classes=K)
    objective = TokenClassification(model, class_weights=(1.0, 3.0, 0.5, 2.0))
    rng = np.random.default_rng(6)
    labels = np.where(rng.random((B, T)) < 0.6, rng.integers(0, K, (B, T)), -100)
    batch = rows(labels.astype(np.int32))
    logits, loss, metrics = losses(objective, batch)
    counted = np.where(COUNTED[:, None] > 0, labels, -100)
    expected = functional.cross_entropy(
        logits.flatten(0, 1),
        torch.tensor(counted).flatten(),
        weight=torch.tensor([1.0, 3.0, 0.5, 2.0]),
        reduction="sum",
    )
    number = (counted >= 0).sum()
    np.testing.assert_allclose(loss, float(expected) / number, rtol=1e-5)
    right = (logits.numpy().argmax(-1) == counted).sum() / number
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
    assert float(objective.weights(batch)["cross_entropy"]) == number


@pytest.mark.parametrize("family", MODELS)
def test_padding_changes_nothing(family):
    objective = TextClassification(MODELS[family])
    batch = rows(classes())
    _, loss, _ = losses(objective, batch)
    more = np.random.default_rng(7).integers(3, V, (B, 5)).astype(np.int32)
    longer = batch | {
        "tokens": np.concatenate([batch["tokens"], more], 1),
        "segment_ids": np.pad(batch["segment_ids"], [(0, 0), (0, 5)]),
    }
    _, other, _ = losses(objective, longer)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    # A row of weight 0 does not count either.
    shorter = {name: x[COUNTED > 0] for name, x in batch.items()}
    _, other, _ = losses(objective, shorter)
    np.testing.assert_allclose(other, loss, rtol=1e-5)


def test_the_second_of_two_texts_has_another_type():
    objective = TextClassification(MODELS["encoder"])
    batch = rows(classes())
    types = (np.arange(T) >= 3).astype(np.int32) * batch["segment_ids"]
    paired = batch | {"token_types": types}
    alone, pair = (
        objective.predict(variables_of(objective), b) for b in (batch, paired)
    )
    assert np.abs(np.asarray(alone - pair)).max() > 1e-3
    # A decoder has no types of tokens.
    objective = TextClassification(MODELS["decoder"])
    alone, pair = (
        objective.predict(variables_of(objective), b) for b in (batch, paired)
    )
    np.testing.assert_array_equal(alone, pair)


SHAPES = {"tokens": (T,), "segment_ids": (T,), "labels": (), "weights": ()}


@pytest.mark.parametrize(
    ("make", "shapes", "named"),
    [
        ({}, {"tokens": (17,)}, r"gpt\.max_length = 16"),
        ({}, {"labels": (K,)}, r"output = 'sigmoid' gpt\.num_classes = 4"),
        ({"output": "sigmoid"}, {"labels": (3,)}, r"gpt\.num_classes = 4"),
        ({"output": "regression"}, {}, r"gpt\.num_classes = 4; expected 1"),
        ({"class_weights": (1.0, 2.0)}, {}, "class_weights has 2 numbers; expected 4"),
        ({}, {"targets": (T,)}, "targets"),
    ],
)
def test_rows_that_do_not_fit_are_refused(make, shapes, named):
    with pytest.raises(UserError, match=named):
        TextClassification(MODELS["decoder"], **make).check(SHAPES | shapes, V)


def test_models_without_the_head_are_refused():
    with pytest.raises(UserError, match=r"gpt\.num_classes = None"):
        TextClassification(GPT(CONFIG, **SIZES)).check(SHAPES, V)
    with pytest.raises(UserError, match=r"token_classification\.model = @seq2seq"):
        TokenClassification(MODELS["encoder_decoder"])
    with pytest.raises(UserError, match=r"text_classification\.model = @vit"):
        TextClassification(ViT(CONFIG, image_size=6, patch_size=3, num_classes=2))
    with pytest.raises(UserError, match=r"class_weights.* regression|regression"):
        TextClassification(MODELS["decoder"], class_weights=(1.0,), output="regression")
    objective = TokenClassification(Bert(CONFIG, **SIZES, token_classes=K))
    with pytest.raises(UserError, match="a label for each token"):
        objective.check(SHAPES, V)


def test_labels_of_the_data_are_those_of_the_model():
    def data(*names):
        return SimpleNamespace(class_names=lambda: names)

    objective = TextClassification(MODELS["decoder"])
    objective.check_data(data(*"abcd"))
    with pytest.raises(UserError, match=r"gpt\.num_classes = 4; expected 3"):
        objective.check_data(data(*"abc"))
    with pytest.raises(UserError, match="are numbers, or none; expected classes"):
        objective.check_data(data())
    number = TextClassification(
        MODELS["decoder"].clone(num_classes=1), output="regression"
    )
    number.check_data(data())
    with pytest.raises(UserError, match="are classes; expected numbers"):
        number.check_data(data("a"))
