"""Coded weights, and products and gradients by them, by the papers' formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.coded_weights import NF4_LEVELS, dynamic_levels
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.peft.added import Weight
from fmjax.optim.peft.coding import Int8, NormalFloat4, decode, encode
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.peft import Peft
from fmjax.training.state import abstract_variables

CODINGS = {
    "nf4": NormalFloat4(),
    "nf4_single": NormalFloat4(double=False),
    "int8": Int8(),
}
CONFIG = TransformerConfig(
    num_layers=2,
    embed_dim=64,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=128,
    gated_mlp=True,
    bias=True,
    rotary=Rotary(1e4),
    dtype="float32",
)
IDS = np.arange(12).reshape(2, 6).astype(np.int32)


def drawn(*shape):
    rng = np.random.default_rng(0)
    return (0.02 * rng.standard_t(4, size=shape)).astype(np.float32)


def by_hand(weight, double):
    """The decoded weight of the QLoRA paper, in float64."""
    rows = weight.astype(np.float64).reshape(weight.shape[0], -1).T
    blocks = rows.reshape(-1, 64)
    largest = np.abs(blocks).max(1)
    levels = np.array(NF4_LEVELS)
    scaled = blocks / np.where(largest, largest, 1)[:, None]
    nearest = levels[np.abs(scaled[..., None] - levels).argmin(-1)]
    if double:
        mean, known = largest.mean(), dynamic_levels().astype(np.float64)
        for start in range(0, len(largest), 256):
            part = largest[start : start + 256] - mean
            outer = np.abs(part).max()
            at = np.abs(part[:, None] / (outer or 1) - known).argmin(-1)
            largest[start : start + 256] = known[at] * outer + mean
    return (nearest * largest[:, None]).reshape(rows.shape).T.reshape(weight.shape)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(64, 3), (128, 2, 40), (64, 1, 1)])
def test_decoded_weights_are_those_of_the_paper(shape, double):
    weight = drawn(*shape)
    names = ("embed", "heads", "kv")[: len(shape)]
    coding = NormalFloat4(double=double)
    weight_here = Weight("stack/attention/query", names, shape)
    found = decode(coding, weight_here, encode(coding, weight_here, weight))
    np.testing.assert_allclose(found, by_hand(weight, double), rtol=1e-5, atol=1e-7)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=64, max_size=64))
@settings(deadline=None, max_examples=40)
def test_int8_is_off_by_half_a_step_at_most(values):
    weight = np.array(values, np.float32)[:, None]
    own = Weight("stack/mlp/in", ("embed", "mlp"), weight.shape)
    found = decode(Int8(), own, encode(Int8(), own, weight))
    step = np.abs(weight).max() / 127
    assert np.abs(np.asarray(found) - weight).max() <= 0.5001 * step + 1e-30


def test_zeros_stay_zeros():
    own = Weight("stack/mlp/in", ("embed", "mlp"), (64, 4))
    for coding in CODINGS.values():
        found = decode(coding, own, encode(coding, own, np.zeros((64, 4), np.float32)))
        np.testing.assert_array_equal(found, np.zeros((64, 4)))


def planned(config, coding):
    objective = CausalLM(
        GPT(config, vocab_size=40, max_length=6, positions="none", vocab_multiple=8)
    )
    axes, shapes = abstract_variables(objective)
    peft = Peft(methods=(LoRA(paths=("**/*attention/*",)),), coding=coding)
    plan = peft.plan(axes["params"], shapes["params"])
    rng = np.random.default_rng(1)
    decoded = {
        path: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in plan.base_shapes.items()
    }
    adapters = {
        path: (
            (0.2 * rng.normal(size=each.shape)).astype(np.float32)
            if each.trained
            else np.asarray(each.init(None))
        )
        for path, each in plan.added.items()
    }
    coded = dict(decoded)
    for path in plan.coded:
        coded |= plan.encode(path, coded.pop(path))
        decoded[path] = plan.decode(path, coded)
    return objective, plan, decoded, coded, adapters


@pytest.mark.parametrize(
    ("kind", "coding"),
    [
        ("scanned", "nf4"),
        ("scanned", "int8"),
        slow("scanned", "nf4_single"),
        slow("unrolled", "nf4"),
        ("experts", "nf4"),
        slow("experts", "int8"),
    ],
)
def test_a_coded_model_is_that_of_the_decoded_weights(kind, coding):
    config = dataclasses.replace(CONFIG, scan_layers=kind != "unrolled")
    if kind == "experts":
        experts = Experts(4, shared_dim=64)
        config = dataclasses.replace(config, bias=False, experts=experts)
    objective, plan, decoded, coded, adapters = planned(config, CODINGS[coding])
    assert len(plan.coded) >= 7
    shapes = traverse_util.flatten_dict(plan.shapes, sep="/")
    own = {path: np.asarray(leaf) for path, leaf in (coded | adapters).items()}
    assert {p: (x.shape, x.dtype) for p, x in own.items()} == {
        p: (x.shape, x.dtype) for p, x in shapes.items()
    }

    @jax.jit
    def loss(adapters, base):
        params = traverse_util.unflatten_dict(base | adapters, sep="/")
        logits = objective.model.apply({"params": params}, TextInputs(IDS))["logits"]
        return jnp.sin(logits).mean(), logits

    gradient = jax.value_and_grad(loss, has_aux=True)
    (_, found), into_found = gradient(adapters, coded)
    (_, wanted), into_wanted = gradient(adapters, decoded)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
    for path, expected in into_wanted.items():
        size = np.abs(expected).max()
        np.testing.assert_allclose(into_found[path], expected, atol=1e-4 * size)


def test_scanned_layers_keep_no_decoded_weights_for_the_backward_pass():
    def temporaries(layers):
        config = dataclasses.replace(CONFIG, num_layers=layers)
        objective, _, decoded, coded, adapters = planned(config, NormalFloat4())

        def step(adapters, base):
            def loss(adapters):
                params = traverse_util.unflatten_dict(base | adapters, sep="/")
                out = objective.model.apply({"params": params}, TextInputs(IDS))
                return jnp.sin(out["logits"]).mean()

            return jax.grad(loss)(adapters)

        compiled = jax.jit(step).lower(adapters, coded).compile()
        weights = sum(leaf.nbytes for leaf in decoded.values())
        return compiled.memory_analysis().temp_size_in_bytes, weights

    few, many = temporaries(2), temporaries(8)
    assert many[0] - few[0] < 0.6 * (many[1] - few[1])


@pytest.mark.parametrize(
    ("coding", "width", "message"),
    [
        (NormalFloat4(), 48, "has 48 inputs; expected a multiple of 64"),
        (NormalFloat4(paths=("**/norm/*",)), 64, "nf4.paths: .* is a matrix"),
        (Int8(paths=("**/mlp/router",)), 64, "int8.paths: .* is a matrix"),
    ],
)
def test_what_cannot_be_coded_is_told(coding, width, message):
    config = dataclasses.replace(CONFIG, embed_dim=width)
    with pytest.raises(UserError, match=message):
        planned(config, coding)
