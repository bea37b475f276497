"""Layers that share parameters (ALBERT), and layers with their own biases (UMT5)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiers import slow

from fmjax.models.flops import matmul_parameters
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig

SHARED = TransformerConfig(3, 16, 4, mlp_dim=24, dtype="float32", share_layers=True)
APART = dataclasses.replace(SHARED, share_layers=False)
TOKENS = np.arange(14, dtype=np.int32).reshape(2, 7) % 11


OWN_BIASES = dataclasses.replace(
    APART, position_bias=RelativeBuckets(4, 5, per_layer=True)
)


def model(config):
    return GPT(config, 11, 8, vocab_multiple=1)


def random_params(config):
    shapes = jax.eval_shape(model(config).init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.float32(rng.normal(scale=0.3, size=leaf.shape)),
        nn.unbox(shapes),
    )


@pytest.fixture(scope="module")
def params():
    return random_params(SHARED)


def repeated(params):
    """The parameters of as many layers, each for itself."""
    stack = dict(params["stack"])
    one = stack.pop("shared_layer")
    stack["layers"] = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), one)
    return params | {"stack": stack}


@pytest.mark.parametrize(
    "changes",
    [{}, slow({"scan_layers": False}), {"remat": "full"}],
)
def test_outputs_and_gradients_are_those_of_equal_layers(params, changes):
    def loss(params, config):
        out = model(config).apply({"params": params}, TOKENS, hidden_states=True)
        return jnp.square(out["logits"]).mean(), out["hidden_states"]

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    config = dataclasses.replace(SHARED, **changes)
    (found, states), ours = grad(params, config)
    (expected, same), theirs = grad(repeated(params), APART)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(states, same, atol=1e-5)
    layers = theirs["stack"].pop("layers")
    theirs["stack"]["shared_layer"] = jax.tree.map(lambda x: x.sum(0), layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("config", [SHARED, OWN_BIASES], ids=["shared", "own biases"])
def test_a_cache_has_each_layers_keys(config):
    decoder, params = model(config), random_params(config)

    @jax.jit
    def step(tokens, positions, cache):
        text = TextInputs(tokens, positions=positions)
        out = decoder.apply({"params": params}, text, cache, method=decoder.hidden)
        return out["hidden"], out["cache"]

    cache = decoder.empty_cache(2, 8)
    for t in range(TOKENS.shape[1]):
        last, cache = step(TOKENS[:, t : t + 1], jnp.full((2, 1), t), cache)
    whole = jax.jit(lambda tokens: decoder.apply({"params": params}, tokens))(TOKENS)
    np.testing.assert_allclose(last[:, 0], whole["hidden"][:, -1], atol=1e-4)


def test_every_pass_through_the_layer_counts_as_flops(params):
    assert matmul_parameters(params, SHARED) == matmul_parameters(
        repeated(params), APART
    )
