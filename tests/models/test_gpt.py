"""GPT's parts against float64 NumPy, and the properties that training relies on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.attention import attend
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.dropout import dropout
from fmjax.models.layers.rotary import Rotary, rotate
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer import (
    TransformerConfig,
    stack_layers,
    unstack_layers,
)

GPT2 = TransformerConfig(num_layers=3, embed_dim=24, num_heads=4)
LLAMA = dataclasses.replace(
    GPT2,
    num_kv_heads=2,
    mlp_dim=40,
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    bias=False,
    rotary=Rotary(10000.0),
)


def make(config, **kwargs):
    llama = config.rotary is not None
    kwargs = {"vocab_size": 50, "max_length": 16} | kwargs
    kwargs |= {"positions": "none" if llama else "learned", "tie_embeddings": not llama}
    model = GPT(config, **kwargs)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    # Larger than at the start of training, so that every part shows in the output.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.25, leaf.shape).astype(np.float32),
        nn.unbox(shapes)["params"],
    )
    return model, params


def apply(model, params, *args, **kwargs):
    # Eagerly, every operation would be compiled by itself.
    return jax.jit(model.apply)({"params": params}, *args, **kwargs)


def tokens(rows=2, length=16, seed=0):
    return np.random.default_rng(seed).integers(0, 50, (rows, length))


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_every_parameter_has_logical_axes(config):
    model = GPT(config, vocab_size=50, max_length=16)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert isinstance(leaf, nn.Partitioned)
        assert len(leaf.names) == leaf.value.ndim
        assert None not in leaf.names


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_scanned_equals_unrolled(config):
    model, params = make(config)
    unrolled = model.clone(transformer=dataclasses.replace(config, scan_layers=False))
    apart = params | {"stack": unstack_layers(params["stack"], config.num_layers)}
    x = tokens()
    a = apply(model, params, x)["logits"]
    b = apply(unrolled, apart, x)["logits"]
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    again = stack_layers(apart["stack"], config.num_layers)
    jax.tree.map(np.testing.assert_array_equal, again, params["stack"])


@pytest.mark.parametrize("remat", ["weights", "full"])
def test_rematerialization_changes_no_gradient(remat):
    model, params = make(LLAMA)
    other = model.clone(transformer=dataclasses.replace(LLAMA, remat=remat))
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(model, params):
        out = model.apply({"params": params}, tokens(), keys=keys)
        return (out["logits"] ** 2).mean()

    a = jax.jit(jax.grad(lambda p: loss(model, p)))(params)
    b = jax.jit(jax.grad(lambda p: loss(other, p)))(params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b
    )


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_logits_depend_on_no_later_token(config):
    model, params = make(config)
    x = tokens(1)
    y = x.copy()
    y[:, 9:] = (y[:, 9:] + 1) % 50
    a, b = (apply(model, params, t)["logits"] for t in (x, y))
    np.testing.assert_array_equal(a[:, :9], b[:, :9])
    assert np.abs(a[:, 9:] - b[:, 9:]).max() > 1e-3


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_packed_documents_are_as_if_alone(config):
    model, params = make(config)
    x = tokens(1)
    segments = np.array([[1] * 7 + [2] * 6 + [0] * 3])
    positions = np.array([[*range(7), *range(6), *range(3)]])
    text = TextInputs(x, positions=positions, segment_ids=segments)
    packed = apply(model, params, text)["logits"]
    for part in (slice(0, 7), slice(7, 13)):
        alone = apply(model, params, x[:, part])["logits"]
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-4, atol=1e-4)


def test_padded_vocabulary_is_never_predicted():
    model, params = make(GPT2, vocab_multiple=64)
    params["tokens"]["table"][50:] = 100.0
    out = apply(model, params, tokens())
    assert out["logits"].shape == (2, 16, 50)
    head = model.apply({"params": params}, out["hidden"], method="head")
    assert head.shape == (2, 16, 64)
    assert (jax.nn.softmax(head)[..., 50:] == 0).all()


def test_attention_against_float64():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 5, 6, 4))
    k, v = rng.normal(size=(2, 2, 5, 3, 4))
    got = attend(*(jnp.float32(x) for x in (q, k, v)), AttentionMask(causal=True))
    k, v = (np.repeat(x, 2, axis=2) for x in (k, v))
    scores = np.einsum("bthk,bshk->bhts", q, k) / 2
    scores = np.where(np.tril(np.ones((5, 5))) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("bhts,bshk->bthk", weights, v)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_rotary_against_complex_numbers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 7, 2, 8))
    positions = np.arange(7)[None] * 3
    frequency = 100.0 ** (-np.arange(4) / 4)
    z = (x[..., :4] + 1j * x[..., 4:]) * np.exp(
        1j * positions[..., None, None] * frequency
    )
    want = np.concatenate([z.real, z.imag], -1)
    tables = Rotary(100.0).tables(x.shape[-1], jnp.asarray(positions))
    got = rotate(jnp.float32(x), *tables)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_mean_and_is_an_examples_own():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 1000, 20))
    y = dropout(x, 0.25, keys)
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(y.mean(), 1, atol=0.01)
    np.testing.assert_array_equal(dropout(x[2:3], 0.25, keys[2:3]), y[2:3])
    assert dropout(x, 0.25, None) is x


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 5}, "transformer.num_heads"),
        ({"num_kv_heads": 3}, "transformer.num_kv_heads"),
        ({"dropout": 1.0}, "transformer.dropout"),
        ({"num_layers": 0}, "transformer.num_layers"),
        ({"rotary": Rotary(), "head_dim": 3}, "transformer.head_dim"),
    ],
)
def test_impossible_sizes_are_refused_by_name(changes, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(GPT2, **changes)


def test_a_tied_head_copies_its_table_for_many_rows_alone():
    config = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2)
    model = GPT(config, vocab_size=32, max_length=128)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))

    def copies(rows):
        tokens = jnp.zeros((rows, 1), jnp.int32)
        return "optimization_barrier" in str(
            jax.make_jaxpr(model.apply)(params, tokens)
        )

    assert [copies(rows) for rows in (1, 127, 128)] == [False, False, True]
