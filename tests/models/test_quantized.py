"""Products in eight bits: against rounding written down in NumPy; gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from training.test_context_step import LLAMA, causal, decoder

from fmjax.errors import UserError
from fmjax.models.layers import quantized
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.block import Context
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.quantized import product
from fmjax.models.layers.transformer import Stack
from fmjax.objectives.terms import total

ROWS, INPUTS, OUTPUTS = 12, 32, 20


def rounded(x, axis):
    """To 256 steps, of which the largest magnitude along an axis is 127.5."""
    scale = np.abs(x).max(axis, keepdims=True) / 127.5
    return np.clip(np.round(x / scale), -128, 127) * scale


def test_int8_rounds_rows_and_columns():
    rng = np.random.default_rng(0)
    x, w, g = (
        rng.normal(size=s).clip(-1.9, 1.9).astype(np.float32)
        for s in ((ROWS, INPUTS), (INPUTS, OUTPUTS), (ROWS, OUTPUTS))
    )
    # A step is then exactly 1/64, and no quotient is near to half a step by rounding.
    for a in (x, w, g):
        a[0] = a[:, 0] = 127.5 / 64

    @jax.jit
    def passed(x, w, g):
        y, pull = jax.vjp(lambda x, w: product(x, w, jnp.float32, "int8"), x, w)
        return y, *pull(g)

    y, into_x, into_w = passed(x, w, g)
    np.testing.assert_allclose(y, rounded(x, 1) @ rounded(w, 0), rtol=1e-4, atol=1e-4)
    want = rounded(g, 1) @ rounded(w, 1).T
    np.testing.assert_allclose(into_x, want, rtol=1e-4, atol=1e-4)
    # The gradient of the weights is not rounded.
    np.testing.assert_allclose(into_w, x.T @ g, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 7), ("float8", 3)])
def test_products_are_near_to_exact_ones(kind, bits):
    rng = np.random.default_rng(1)
    x, w = (
        rng.normal(size=s).astype(np.float32)
        for s in ((4, ROWS, INPUTS), (INPUTS, OUTPUTS))
    )
    y = product(x, w, jnp.float32, kind)
    error = np.linalg.norm(y - x @ w) / np.linalg.norm(x @ w)
    assert 1e-4 < error < 3 * 2.0**-bits


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_gradients_of_a_model_point_where_exact_ones_do(kind):
    exact = decoder(LLAMA)
    rounded = decoder(dataclasses.replace(LLAMA, quantized=kind))
    params = jax.jit(exact.init)(jax.random.key(0))
    data = causal(0)

    def gradient(objective):
        def loss(params):
            return total(objective.loss(params, data, None).terms)

        found = jax.jit(jax.grad(loss))(params)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    a, b = gradient(exact), gradient(rounded)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert 0.98 < cosine < 1 - 1e-7


LATENT = dataclasses.replace(
    LLAMA,
    num_kv_heads=None,
    head_dim=8,
    latent=Latent(rank=6, query_rank=5, rotary_dim=4, value_dim=3),
)


@pytest.mark.parametrize("config", [LLAMA, LATENT], ids=["llama", "latent"])
def test_every_product_with_weights_of_a_block_is_in_eight_bits(config):
    stack = Stack(dataclasses.replace(config, quantized="int8"))
    x = jnp.zeros((2, 8, config.embed_dim))
    context = Context(jnp.arange(8)[None], AttentionMask(causal=True))
    params = jax.eval_shape(stack.init, jax.random.key(0), x, context)
    layers = nn.unbox(params)["params"]["layers"]
    matrices = [leaf for leaf in jax.tree.leaves(layers) if leaf.ndim > 2]

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield {str(operand.aval.dtype) for operand in equation.invars}
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from products(inner)

    jaxpr = jax.make_jaxpr(stack.apply)(params, x, context).jaxpr
    found = list(products(jaxpr))
    assert found.count({"int8"}) == len(matrices)
    # And two of attention.
    assert len(found) == len(matrices) + 2


def test_what_cannot_be_quantized_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"transformer\.quantized = 'int8': .*experts"):
        dataclasses.replace(LLAMA, quantized="int8", experts=Experts(4))
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="qwix"):
        dataclasses.replace(LLAMA, quantized="int8")
