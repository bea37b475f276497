"""Classification against float64 NumPy."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification

B, K = 8, 7
CONFIG = TransformerConfig(num_layers=1, embed_dim=12, num_heads=3, dtype="float32")


def objective(classes=K, **kwargs):
    model = ViT(CONFIG, image_size=6, patch_size=3, num_classes=classes)
    return Classification(model, **kwargs)


def variables(obj):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(obj.init, jax.random.key(0))),
    )


def batch(classes=K, mixed=False, many=False):
    rng = np.random.default_rng(1)
    data = {
        "images": rng.normal(size=(B, 6, 6, 3)).astype(np.float32),
        "labels": rng.integers(0, classes, B).astype(np.int32),
        "weights": np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32),
    }
    if many:
        data["labels"] = (rng.random((B, classes)) < 0.3).astype(np.float32)
    if mixed:
        data["other_labels"] = rng.integers(0, classes, B).astype(np.int32)
        data["label_share"] = rng.random(B).astype(np.float32)
    return data


def targets(data, classes):
    labels = data["labels"]
    if labels.ndim == 2:
        return labels.astype(np.float64)
    wanted = np.eye(classes)[labels]
    if "other_labels" in data:
        share = data["label_share"][:, None].astype(np.float64)
        wanted = share * wanted + (1 - share) * np.eye(classes)[data["other_labels"]]
    return wanted


def means(obj, v, data):
    """The logits in float64, and the loss's term and metrics as means."""
    logits = jax.jit(obj.model.apply)(v, data["images"])["logits"]
    terms, metrics, _ = jax.jit(lambda v, data: obj.loss(v, data, None))(v, data)
    found = {name: float(m.sum / m.weight) for name, m in metrics.items()}
    assert terms["cross_entropy"].weight == data["weights"].sum()
    found["loss"] = float(terms["cross_entropy"].sum / terms["cross_entropy"].weight)
    return np.asarray(logits, np.float64), found


def mean(values, data):
    return (values * data["weights"]).sum() / data["weights"].sum()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_of_images(mixed, smoothing):
    obj = objective(label_smoothing=smoothing)
    data = batch(mixed=mixed)
    logits, found = means(obj, variables(obj), data)
    wanted = targets(data, K)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smoothed = (1 - smoothing) * wanted + smoothing / K
    expected = mean(-(smoothed * log_p).sum(-1), data)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    rows = np.arange(B)
    right = wanted[rows, logits.argmax(-1)]
    np.testing.assert_allclose(found["accuracy"], mean(right, data), rtol=1e-6)
    five = wanted[rows[:, None], np.argsort(-logits)[:, :5]].sum(-1)
    np.testing.assert_allclose(found["top5_accuracy"], mean(five, data), rtol=1e-6)


@pytest.mark.parametrize("kind", [dict(), dict(mixed=True), dict(many=True)])
def test_sigmoid_of_images(kind):
    obj = objective(5, output="sigmoid")
    data = batch(5, **kind)
    logits, found = means(obj, variables(obj), data)
    wanted = targets(data, 5)
    p = 1 / (1 + np.exp(-logits))
    losses = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(found["loss"], mean(losses, data), rtol=1e-5)
    assert "top5_accuracy" not in found
    right = wanted[np.arange(B), logits.argmax(-1)]
    np.testing.assert_allclose(found["accuracy"], mean(right, data), rtol=1e-6)


def test_one_of_several_labels_among_the_five_best():
    obj = objective(output="sigmoid")
    data = batch(many=True)
    logits, found = means(obj, variables(obj), data)
    chosen = np.argsort(-logits)[:, :5]
    some = np.take_along_axis(data["labels"], chosen, -1).max(-1)
    np.testing.assert_allclose(found["top5_accuracy"], mean(some, data), rtol=1e-6)


def test_training_starts_with_every_class_alike():
    obj = objective()
    v = nn.unbox(jax.jit(obj.init)(jax.random.key(0)))
    _, found = means(obj, v, batch())
    np.testing.assert_allclose(found["loss"], np.log(K), rtol=1e-6)


ROWS = {"images": (6, 6, 3), "labels": (), "weights": ()}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ({**ROWS, "images": (8, 8, 3)}, r"images\.size .* vit\.image_size = 6"),
        ({**ROWS, "images": (6, 6, 1)}, "vit.channels"),
        ({**ROWS, "labels": (K,)}, "classification.output"),
        ({"images": (6, 6, 3), "weights": ()}, "labels"),
        ({**ROWS, "tokens": (4,)}, "tokens"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, named):
    with pytest.raises(UserError, match=named):
        objective().check(rows, 0)


def test_rows_that_fit():
    mixed = {"other_labels": (), "label_share": ()}
    objective().check({**ROWS, **mixed}, 0)
    objective(output="sigmoid").check({**ROWS, "labels": (K,)}, 0)


def test_models_without_classes_are_refused():
    with pytest.raises(UserError, match=r"vit\.num_classes"):
        objective(0).check(ROWS, 0)
    with pytest.raises(UserError, match=r"classification\.model"):
        Classification(Bert(CONFIG, 50, 8))
    with pytest.raises(UserError, match="label_smoothing"):
        objective(label_smoothing=1.0)


def test_other_classes_than_those_of_the_data_are_refused():
    def data(names):
        return SimpleNamespace(class_names=lambda: tuple(names))

    objective().check_data(data("abcdefg"))
    for names in ("abcdef", "abcdefgh"):
        with pytest.raises(UserError, match=r"vit\.num_classes = 7; expected"):
            objective().check_data(data(names))
