"""Attacks on pixels of a linear classifier: float64 NumPy, and closed forms."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from fmjax.data.images.image_data import ImageData
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.sources.digits import Digits
from fmjax.data.tasks.image_task import ImageTask
from fmjax.evaluation.robustness import RobustAccuracy, measure_robustness
from fmjax.objectives.attack import find_inputs, random_perturbation
from fmjax.objectives.classification import Classification
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.training.accumulation import accumulate
from fmjax.training.adversary import FGM, PGD, FreeLB
from fmjax.training.experiment import Experiment
from fmjax.training.pgd_attack import PGDAttack
from fmjax.training.state import State
from fmjax.training.step import example_keys
from fmjax.training.train_config import TrainConfig

B, S, K = 8, 3, 3
NORMALIZED = Preprocessing(size=S, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
BLACK, WHITE = (
    NORMALIZED.normalize(Image.new("RGB", (S, S), colour)).astype(np.float64)
    for colour in ("black", "white")
)


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    num_classes: int
    image_size: int = S
    channels: int = 3

    @nn.compact
    def __call__(self, images, keys=None):
        x = images.reshape(len(images), -1)
        init = nn.initializers.normal()
        w = self.param("w", init, (x.shape[-1], self.num_classes))
        return {"logits": x @ w + self.param("b", init, (self.num_classes,))}


def some_batch(classes=K, rows=B):
    """Images from black to white, of which a third is either, and one is noise."""
    rng = np.random.default_rng(0)
    share = np.clip(rng.uniform(-0.25, 1.25, (rows, S, S, 3)), 0, 1)
    images = BLACK + share * (WHITE - BLACK)
    images[2] = rng.normal(0, 4, (S, S, 3))
    return {
        "images": images.astype(np.float32),
        "labels": rng.integers(0, classes, rows).astype(np.int32),
        "weights": (np.arange(rows) != 3).astype(np.float32),
    }


def some_params(classes=K):
    rng = np.random.default_rng(1)
    shapes = {"w": (S * S * 3, classes), "b": (classes,)}
    return {
        name: rng.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def of_loss(params, batch, delta):
    """The mean loss at perturbed images, its gradients, and that of the images."""
    w, b = (params[name].astype(np.float64) for name in ("w", "b"))
    x = (batch["images"] + delta).reshape(len(batch["images"]), -1)
    logits = x @ w + b
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    weights = batch["weights"].astype(np.float64) / batch["weights"].sum()
    right = np.eye(p.shape[-1])[batch["labels"]]
    into = (p - right) * weights[:, None]
    loss = -(weights * np.log((p * right).sum(-1))).sum()
    into_images = (into @ w.T).reshape(batch["images"].shape)
    return loss, {"w": x.T @ into, "b": into.sum(0)}, into_images


def in_range(batch, delta):
    """The perturbation of clipped pixels; one that is out of range moves no further."""
    x = batch["images"].astype(np.float64)
    return np.clip(x + delta, np.minimum(x, BLACK), np.maximum(x, WHITE)) - x


def unclipped(batch, delta):
    del batch
    return delta


def lengths(x):
    return np.sqrt((x**2).sum((1, 2, 3), keepdims=True))


def unit(g):
    size = lengths(g)
    return np.divide(g, size, out=np.zeros_like(g), where=size > 0)


def on_ball(delta, radius):
    return delta * np.minimum(1, radius / np.maximum(lengths(delta), 1e-30))


def numpy_fgsm(params, batch, first, clip):
    """Goodfellow et al. 2015, with the loss of the perturbed images alone."""
    del first
    *_, g = of_loss(params, batch, 0.0)
    return of_loss(params, batch, clip(batch, 0.4 * np.sign(g)))[:2]


def numpy_fgm(params, batch, first, clip):
    del first
    loss, grads, g = of_loss(params, batch, 0.0)
    other, more, _ = of_loss(params, batch, clip(batch, 2.0 * unit(g)))
    return loss + other, {name: grads[name] + more[name] for name in grads}


def numpy_pgd(params, batch, first, clip):
    """Madry et al. 2018: steps of a sign from noise in the ball."""
    delta = clip(batch, first)
    for _ in range(3):
        *_, g = of_loss(params, batch, delta)
        delta = clip(batch, np.clip(delta + 0.3 * np.sign(g), -0.5, 0.5))
    return of_loss(params, batch, delta)[:2]


def numpy_pgd_l2(params, batch, first, clip):
    del first
    delta = np.zeros(batch["images"].shape)
    for _ in range(3):
        *_, g = of_loss(params, batch, delta)
        delta = clip(batch, on_ball(delta + 1.5 * unit(g), 2.0))
    return of_loss(params, batch, delta)[:2]


def numpy_freelb(params, batch, first, clip):
    delta, found = clip(batch, first), []
    for _ in range(3):
        loss, grads, g = of_loss(params, batch, delta)
        found.append((loss / 3, {name: x / 3 for name, x in grads.items()}))
        delta = clip(batch, delta + 1.5 * unit(g))
    grads = {name: sum(grads[name] for _, grads in found) for name in ("w", "b")}
    return sum(loss for loss, _ in found), grads


CASES = {
    "fgsm": (FGM(0.4, "linf", clean_weight=0.0), numpy_fgsm),
    "fgm": (FGM(2.0), numpy_fgm),
    "pgd": (
        PGD(PGDAttack(0.5, 3, 0.3, "linf"), random_start=True, clean_weight=0.0),
        numpy_pgd,
    ),
    "pgd of l2": (PGD(PGDAttack(2.0, 3, 1.5), clean_weight=0.0), numpy_pgd_l2),
    "freelb": (FreeLB(steps=3, step_size=1.5, initial_size=2.0), numpy_freelb),
}


def noise_of(adversary, batch, variables, keys):
    """The random start without bounds, which NumPy is given."""
    size, norm = 0.5, "linf"
    if isinstance(adversary, FreeLB):
        size, norm = adversary.initial_size, "l2"
    inputs = find_inputs(Classification(Linear(K)), variables, batch, None)
    (noise,) = random_perturbation(inputs, keys, size, norm).values()
    return np.asarray(noise, np.float64)


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_perturbed_as_in_numpy_and_stay_between_black_and_white(name):
    adversary, reference = CASES[name]
    batch, params = some_batch(), some_params()
    state = State(jnp.int32(0), params, {}, None)
    keys = example_keys(0, state.step, B)
    grads, metrics, _ = jax.jit(
        lambda state: accumulate(
            Classification(Linear(K)),
            state,
            batch,
            keys,
            1,
            adversary=adversary,
            pixels=NORMALIZED.pixel_range,
        )
    )(state)
    first = noise_of(adversary, batch, {"params": params}, keys)
    loss, expected = reference(params, batch, first, in_range)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    for path, gradient in expected.items():
        np.testing.assert_allclose(grads[path], gradient, atol=1e-5, err_msg=path)
    # The bounds matter here.
    assert reference(params, batch, first, unclipped)[0] > loss + 0.02


@pytest.mark.parametrize("steps", [1, 7])
def test_robust_accuracy_of_a_linear_classifier_is_its_closed_form(steps):
    # Of two classes the worst image is known: each pixel moves against the weight of
    # the right class, as far as radius and range allow.
    radius, rows = 0.3, 24
    batch, params = some_batch(2, rows), some_params(2)
    w = (params["w"][:, 0] - params["w"][:, 1]).astype(np.float64)
    middle = np.median(batch["images"].reshape(rows, -1) @ w)
    params["b"] = np.array([-middle, 0], np.float32)

    def margins(images):
        return sign * (images.reshape(rows, -1) @ w - middle)

    sign = 1.0
    batch["labels"] = (margins(batch["images"]) < 0).astype(np.int32)
    batch["labels"][:2] = 1 - batch["labels"][:2]  # two are wrong
    sign = 1.0 - 2.0 * batch["labels"]
    against = -np.sign(w).reshape(S, S, 3) * sign[:, None, None, None]
    worst = batch["images"] + in_range(batch, radius * against)

    class Data:
        def eval_batches(self, size, rows, max_batches=None):
            del size, rows, max_batches
            return [batch]

    experiment = types.SimpleNamespace(
        objective=Classification(Linear(2)),
        train=TrainConfig(batch_size=rows),
        data=Data(),
        pixel_range=NORMALIZED.pixel_range,
    )
    mesh, rules = MeshConfig().build(), MeshConfig().all_rules
    how = RobustAccuracy(PGDAttack(radius, steps, norm="linf"))
    with on_mesh(mesh, rules):
        found = measure_robustness(how, experiment, {"params": params}, mesh, rules)
    weights = batch["weights"] / batch["weights"].sum()
    clean, robust = (
        ((margins(images) > 0) * weights).sum() for images in (batch["images"], worst)
    )
    assert 0.1 < robust < clean - 0.1 < 0.9
    np.testing.assert_allclose(found["robust_accuracy"], robust, rtol=1e-6)
    expected = (np.log1p(np.exp(-margins(worst))) * weights).sum()
    np.testing.assert_allclose(found["robust_loss"], expected, rtol=1e-5)


def test_the_range_of_pixels_is_that_of_the_data():
    for value, expected in zip(NORMALIZED.pixel_range, (BLACK, WHITE)):
        np.testing.assert_allclose(np.broadcast_to(value, (S, S, 3)), expected, 1e-5)
    fields = dataclasses.asdict(NORMALIZED)
    data = ImageData(ImageTask(Digits(), name="digits"), **fields)
    # Not that of an imported model, which data need not have.
    experiment = Experiment(
        Classification(Linear(K)), data, preprocessing=Preprocessing()
    )
    assert experiment.pixel_range == NORMALIZED.pixel_range
    # Of a source of one's own nothing is known.
    assert dataclasses.replace(experiment, data=None).pixel_range is None
