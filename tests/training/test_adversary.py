"""Adversarial training against NumPy in float64, closed forms, and on meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from on_meshes import MESHES, assert_same_gradients, gradients_of
from tiers import slow
from tiny_objectives import OBJECTIVES

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.perturbation import perturbed
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.attack import (
    Input,
    find_inputs,
    no_perturbation,
    perturb,
    random_perturbation,
)
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.terms import LossOutput, Term
from fmjax.objectives.text_classification import TextClassification
from fmjax.optim.parametrization import partition
from fmjax.training.accumulation import accumulate
from fmjax.training.adversary import FGM, PGD, FreeLB
from fmjax.training.pgd_attack import PGDAttack
from fmjax.training.smoothness import SMART, VAT
from fmjax.training.state import State
from fmjax.training.step import example_keys

V, B, T, D, H, C = 30, 8, 5, 6, 7, 3


class Bag(nn.Module):
    """The mean of word vectors, a hidden layer, and logits."""

    @nn.compact
    def __call__(self, tokens, mask):
        init = nn.initializers.normal(0.5)
        table = self.param("table", init, (V, D))
        x = perturbed(self, table[tokens], mask)
        mean = jnp.where(mask[..., None], x, 0).sum(1) / mask.sum(1, keepdims=True)
        hidden = jnp.tanh(mean @ self.param("w", init, (D, H)))
        return hidden @ self.param("out", init, (H, C))


@dataclasses.dataclass(frozen=True)
class BagLoss(LabelObjective):
    """Cross-entropy of a bag of words."""

    gin_name = "bag"
    unit = "texts"

    def predict(self, variables, batch, rng=None):
        return self.model.apply(variables, batch["tokens"], batch["segment_ids"] > 0)

    def loss_of(self, logits, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        )
        total = (losses * batch["weights"]).sum()
        return LossOutput({"cross_entropy": Term(total, batch["weights"].sum())}, {})

    def weights(self, batch):
        return {"cross_entropy": batch["weights"].sum()}

    def _check_labels(self, rows, binding):
        pass


BAG = BagLoss(Bag())


def bag_batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, T + 1, (B, 1))
    return {
        "tokens": rng.integers(0, V, (B, T)).astype(np.int32),
        "segment_ids": (np.arange(T) < lengths).astype(np.int32),
        "labels": rng.integers(0, C, B).astype(np.int32),
        "weights": (np.arange(B) != 3).astype(np.float32),
    }


def bag_params():
    rng = np.random.default_rng(1)
    shapes = {"table": (V, D), "w": (D, H), "out": (H, C)}
    return {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def forward(params, batch, delta):
    mask = batch["segment_ids"][..., None].astype(float)
    x = params["table"][batch["tokens"]] + delta * mask
    mean = (x * mask).sum(1) / mask.sum(1)
    hidden = np.tanh(mean @ params["w"])
    return mask, mean, hidden, hidden @ params["out"]


def backward(params, batch, delta, into_logits):
    """Gradients of the parameters and of the perturbation, by hand, in float64."""
    mask, mean, hidden, _ = forward(params, batch, delta)
    into_hidden = (into_logits @ params["out"].T) * (1 - hidden**2)
    into_x = (into_hidden @ params["w"].T)[:, None] * mask / mask.sum(1)[:, None]
    table = np.zeros((V, D))
    np.add.at(table, batch["tokens"], into_x)
    grads = {"table": table, "w": mean.T @ into_hidden, "out": hidden.T @ into_logits}
    return grads, into_x


def of_loss(params, batch, delta):
    """The mean loss, and its gradients."""
    *_, logits = forward(params, batch, delta)
    p, weights = softmax(logits), batch["weights"].astype(float)
    rows = np.arange(B)
    loss = -(np.log(p[rows, batch["labels"]]) * weights).sum() / weights.sum()
    into_logits = p.copy()
    into_logits[rows, batch["labels"]] -= 1
    into_logits *= (weights / weights.sum())[:, None]
    return loss, *backward(params, batch, delta, into_logits)


def unit(g):
    size = np.sqrt((g**2).sum((1, 2), keepdims=True))
    return np.divide(g, size, out=np.zeros_like(g), where=size > 0)


def summed(*grads):
    return {name: sum(g[name] for g in grads) for name in grads[0]}


def clipped(delta, radius):
    size = np.sqrt((delta**2).sum((1, 2), keepdims=True))
    return delta * np.minimum(1, radius / np.maximum(size, 1e-30))


def numpy_fgm(params, batch, first, radius=0.8, clean=1.0):
    del first
    loss, grads, g = of_loss(params, batch, 0.0)
    other, more, _ = of_loss(params, batch, radius * unit(g))
    grads = {name: clean * grads[name] + more[name] for name in grads}
    return clean * loss + other, grads


def numpy_fgm_tokens(params, batch, first):
    del first
    loss, grads, g = of_loss(params, batch, 0.0)
    size = np.sqrt((g**2).sum(2, keepdims=True))
    delta = 0.3 * np.divide(g, size, out=np.zeros_like(g), where=size > 0)
    other, more, _ = of_loss(params, batch, delta)
    return loss + other, summed(grads, more)


def numpy_fgsm(params, batch, first):
    del first
    _, _, g = of_loss(params, batch, 0.0)
    return of_loss(params, batch, 0.2 * np.sign(g))[:2]


def numpy_pgd(params, batch, first):
    del first
    loss, grads, g = of_loss(params, batch, 0.0)
    delta = 0.0
    for _ in range(3):
        _, _, g = of_loss(params, batch, delta)
        delta = clipped(delta + 0.3 * unit(g), 0.5)
    other, more, _ = of_loss(params, batch, delta)
    return loss + other, summed(grads, more)


def numpy_freelb(params, batch, first):
    """Algorithm 1 of Zhu et al. 2020, as the authors' code has it."""
    delta, losses, every = first, [], []
    for _ in range(3):
        loss, grads, g = of_loss(params, batch, delta)
        losses.append(loss / 3)
        every.append({name: x / 3 for name, x in grads.items()})
        delta = clipped(delta + 0.4 * unit(g), 0.6)
    return sum(losses), summed(*every)


def numpy_smart(params, batch, first):
    """One step of the inner problem, then both divergences; weight 2."""
    weights = batch["weights"].astype(float) / batch["weights"].sum()
    *_, clean = forward(params, batch, 0.0)
    *_, logits = forward(params, batch, first)
    # The gradient of KL(p ‖ q) by the logits of q is q - p.
    into = (softmax(logits) - softmax(clean)) * weights[:, None]
    _, g = backward(params, batch, first, into)
    moved = first + 1e-3 * g
    size = np.abs(moved).max(2, keepdims=True)
    delta = 0.5 * np.divide(moved, size, out=np.zeros_like(moved), where=size > 0)
    *_, other = forward(params, batch, delta)
    p, q = softmax(clean), softmax(other)
    difference = np.log(p) - np.log(q)
    # Σ (p - q)(log p - log q), and its gradients by both logits.
    loss, grads, _ = of_loss(params, batch, 0.0)
    value = (((p - q) * difference).sum(1) * weights).sum()

    def into_logits(p, q, difference):
        by_p = difference + 1 - q / p
        return (p * (by_p - (p * by_p).sum(1, keepdims=True))) * weights[:, None]

    into_clean, _ = backward(params, batch, 0.0, 2 * into_logits(p, q, difference))
    into_other, _ = backward(params, batch, delta, 2 * into_logits(q, p, -difference))
    return loss + 2 * value, summed(grads, into_clean, into_other)


def numpy_vat(params, batch, first):
    weights = batch["weights"].astype(float) / batch["weights"].sum()
    *_, clean = forward(params, batch, 0.0)
    *_, logits = forward(params, batch, 1e-2 * unit(first))
    into = (softmax(logits) - softmax(clean)) * weights[:, None]
    _, g = backward(params, batch, 1e-2 * unit(first), into)
    delta = 0.7 * unit(g)
    *_, other = forward(params, batch, delta)
    p, q = softmax(clean), softmax(other)
    loss, grads, _ = of_loss(params, batch, 0.0)
    value = ((p * (np.log(p) - np.log(q))).sum(1) * weights).sum()
    more, _ = backward(params, batch, delta, (q - p) * weights[:, None])
    return loss + value, summed(grads, more)


CASES = {
    "fgm": (FGM(radius=0.8), numpy_fgm),
    "fgm of each token": (FGM(radius=0.3, per="token"), numpy_fgm_tokens),
    "fgsm": (FGM(radius=0.2, norm="linf", clean_weight=0.0), numpy_fgsm),
    "pgd": (PGD(PGDAttack(radius=0.5, steps=3, step_size=0.3)), numpy_pgd),
    "freelb": (
        FreeLB(steps=3, step_size=0.4, initial_size=0.3, radius=0.6),
        numpy_freelb,
    ),
    "smart": (SMART(weight=2.0, noise=0.1, radius=0.5), numpy_smart),
    "vat": (VAT(radius=0.7), numpy_vat),
}


def first_perturbation(adversary, batch, params, keys):
    """The random part, which NumPy is given."""
    variables = {"params": params}
    inputs = find_inputs(BAG, variables, batch, keys)
    if isinstance(adversary, FreeLB):
        found = random_perturbation(inputs, keys, adversary.initial_size, "l2")
    else:
        std = getattr(adversary, "noise", 1.0)
        drawn = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, 0), (T, D))
        )(keys)
        found = {"": std * drawn * batch["segment_ids"][..., None]}
    (delta,) = found.values()
    return np.asarray(delta, np.float64)


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [
        *((name, 1) for name in CASES),
        ("freelb", 2),
        *(slow(name, 2) for name in CASES if name != "freelb"),
    ],
)
def test_gradients_are_those_of_numpy(name, microbatches):
    adversary, reference = CASES[name]
    batch, params = bag_batch(), bag_params()
    small = {name: x.astype(np.float32) for name, x in params.items()}
    state = State(jnp.int32(0), small, {}, None)
    keys = example_keys(0, state.step, B)
    grads, metrics, _ = jax.jit(
        lambda state: accumulate(
            BAG, state, batch, keys, microbatches, adversary=adversary
        )
    )(state)
    first = first_perturbation(adversary, batch, small, keys)
    loss, expected = reference(params, batch, first)
    # The gradient of a small divergence keeps few digits of float32.
    atol = 2e-3 if name in ("smart", "vat") else 1e-5
    np.testing.assert_allclose(metrics["loss"], loss, atol=atol)
    for path, gradient in expected.items():
        np.testing.assert_allclose(grads[path], gradient, atol=atol, err_msg=path)
    plain, _ = of_loss(params, batch, 0.0)[:2]
    assert abs(plain - loss) > 5e-3


def test_the_margin_of_a_linear_classifier_falls_by_the_radius_times_its_norm():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=4), rng.normal(size=(20, 1, 4))
    sign = np.where(rng.random(20) < 0.5, 1.0, -1.0)

    def margins(delta):
        return sign * ((x + delta)[:, 0] @ w)

    def loss(deltas):
        return jnp.log1p(jnp.exp(-margins(deltas["words"]))).mean()

    start = {"words": jnp.zeros(x.shape)}
    inputs = {"words": Input(x.shape, jnp.ones(x.shape[:2], bool))}
    for steps, norm, dual in ((1, "l2", 2), (7, "l2", 2), (7, "linf", 1)):
        attack = PGDAttack(radius=0.3, steps=steps, norm=norm)
        found = attack(jax.grad(loss), start, steps, inputs)["words"]
        expected = margins(0.0) - 0.3 * np.linalg.norm(w, dual)
        np.testing.assert_allclose(margins(np.asarray(found)), expected, atol=2e-5)


def test_noise_is_uniform_of_the_stated_size_and_never_in_padding():
    mask = jnp.arange(9) < jnp.array([[9], [4]])
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = find_inputs(BAG, {"params": bag_params()}, {
        "tokens": jnp.zeros((2, 9), jnp.int32), "segment_ids": mask.astype(int),
        "labels": jnp.zeros(2, int), "weights": jnp.ones(2),
    }, None)  # fmt: skip
    ((path, each),) = inputs.items()
    inputs = {path: each._replace(shape=(2, 9, 4000))}
    for norm, bound in (("l2", 0.5 / np.sqrt([9 * 4000, 4 * 4000])), ("linf", 0.5)):
        noise = np.asarray(random_perturbation(inputs, keys, 0.5, norm)[path])
        assert (noise[1, 4:] == 0).all()
        for row, tokens in ((0, 9), (1, 4)):
            limit = np.broadcast_to(bound, 2)[row]
            used = noise[row, :tokens] / limit
            assert 0.999 < np.abs(used).max() <= 1 + 1e-6
            np.testing.assert_allclose(used.std(), 1 / np.sqrt(3), rtol=0.02)


BLOCKS = TransformerConfig(
    num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24, dropout=0.1,
    attention_dropout=0.1, dtype="float32",
)  # fmt: skip
SIZES = {"vocab_size": 24, "max_length": 8, "vocab_multiple": 8, "num_classes": 3}
CLASSIFIER = TextClassification(
    Bert(BLOCKS, **SIZES, pooler="tanh", language_head=False)
)
TEXTS = OBJECTIVES["text_classification"].batch


def test_all_passes_share_one_dropout_mask():
    plain = gradients_of(CLASSIFIER, TEXTS, None)
    # Without a perturbation, K passes of other masks would differ from one.
    still = FreeLB(steps=3, step_size=1e-12, initial_size=0.0)
    found = gradients_of(CLASSIFIER, TEXTS, None, adversary=still)
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-6)
    assert_same_gradients(plain[1], found[1])


@pytest.mark.parametrize(
    ("adversary", "mesh", "microbatches"),
    [
        (FreeLB(radius=0.2), "data_fsdp_tensor", 1),
        slow(FGM(), "data_fsdp_tensor", 1),
        slow(PGD(random_start=True), "fsdp", 1),
        slow(SMART(), "data", 1),
        slow(VAT(), "tensor", 1),
        slow(FreeLB(), None, 2),
    ],
    ids=lambda x: getattr(x, "gin_name", None),
)
def test_meshes_and_microbatches_change_nothing(adversary, mesh, microbatches):
    loss, gradients = gradients_of(CLASSIFIER, TEXTS, None, adversary=adversary)
    other = gradients_of(
        CLASSIFIER, TEXTS, MESHES.get(mesh), microbatches, adversary=adversary
    )
    np.testing.assert_allclose(other[0], loss, rtol=1e-5)
    whole = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    for name, gradient in gradients.items():
        assert np.linalg.norm(gradient - other[1][name]) <= 1e-4 * whole, name


def test_frozen_parameters_have_no_gradient_and_change_no_other():
    batch, params = bag_batch(), bag_params()
    params = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    state = State(jnp.int32(0), params, {}, None)
    keys = example_keys(0, state.step, B)
    for adversary, _ in (CASES["freelb"], CASES["smart"]):
        chosen = partition(params, {"table": False, "w": True, "out": True})
        whole, part = (
            jax.jit(
                lambda state, trained, adversary=adversary: accumulate(
                    BAG, state, batch, keys, 1, trained, adversary=adversary
                )[0]
            )(state, trained)
            for trained in (params, chosen)
        )
        assert isinstance(part["table"], optax.MaskedNode)
        for name in ("w", "out"):
            np.testing.assert_allclose(part[name], whole[name], rtol=1e-5, atol=1e-6)


def test_every_input_of_words_of_a_model_is_found_and_read():
    both = TextClassification(Seq2Seq(BLOCKS, BLOCKS, **SIZES, positions="learned"))
    for objective, paths in ((CLASSIFIER, {"inputs"}),
                             (both, {"encoder_inputs", "decoder_inputs"})):  # fmt: skip
        variables = nn.unbox(jax.jit(objective.init)(jax.random.key(0)))
        inputs = jax.jit(
            lambda v, o=objective: no_perturbation(find_inputs(o, v, TEXTS, None))
        )(variables)
        assert inputs.keys() == paths
        loss = jax.jit(
            lambda v, d, o=objective: o.loss(*perturb(v, TEXTS, d), None).terms
        )
        plain = loss(variables, inputs)["cross_entropy"].sum
        for path in paths:
            noise = inputs | {path: jax.random.normal(jax.random.key(1), (8, 8, 16))}
            assert abs(loss(variables, noise)["cross_entropy"].sum - plain) > 1e-3
            # Padding is never perturbed.
            padding = jnp.where(TEXTS["segment_ids"][..., None] > 0, 0, noise[path])
            found = loss(variables, inputs | {path: padding})["cross_entropy"].sum
            np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_pixels_are_perturbed_where_there_are_no_words():
    objective, batch = OBJECTIVES["classification"]
    plain = gradients_of(objective, batch, None)
    found = gradients_of(objective, batch, None, adversary=FGM(0.5, norm="linf"))
    # The sum of both losses, of which the second is larger.
    assert found[0] > 2 * plain[0]


@pytest.mark.parametrize(
    ("adversary", "objective", "microbatches", "message"),
    [
        (FGM(), "text_contrast", 2, r"train\.microbatches = 2.*expected 1"),
        (SMART(), "causal_lm", 1, r"@causal_lm\(\) predicts none"),
        (VAT(), "classification", 1, r"@classification\(\) predicts none"),
    ],
)
def test_runs_that_do_not_fit_are_refused(adversary, objective, microbatches, message):
    with pytest.raises(UserError, match=message):
        adversary.check(OBJECTIVES[objective].objective, microbatches)


def test_an_objective_without_words_or_images_is_refused():
    objective, batch = OBJECTIVES["nt_xent"]
    variables = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    with pytest.raises(UserError, match=r"@nt_xent\(\) reads no vectors of words"):
        jax.eval_shape(lambda v: find_inputs(objective, v, batch, None), variables)
