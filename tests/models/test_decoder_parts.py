"""Parts of decoders in which families differ: packed, scanned, cached; in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.activations import clamped_swiglu
from fmjax.models.layers.attention_kernels.attend import attend
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.position_bias import Alibi
from fmjax.models.layers.rotary import Rotary, rotate
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer import unstack_layers
from fmjax.models.layers.transformer_config import TransformerConfig

V, T = 50, 16
BASE = TransformerConfig(
    num_layers=3,
    embed_dim=24,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=20,
    norm="rmsnorm",
    gated_mlp=True,
    activation="silu",
    bias=False,
    rotary=Rotary(100.0),
)
CONFIGS = {
    "gpt_oss": dataclasses.replace(
        BASE,
        activation="clamped_swiglu",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        attention_sinks=True,
        window=4,
        global_layers=(1,),
        experts=Experts(5, 2, normalized=True),
    ),
    "deepseek": dataclasses.replace(
        BASE,
        num_kv_heads=4,
        head_dim=10,
        latent=Latent(rank=7, query_rank=9, rotary_dim=4, value_dim=5),
        experts=Experts(
            6,
            2,
            score="sigmoid",
            choice_bias=True,
            scale=1.5,
            groups=3,
            groups_per_token=2,
            shared_dim=14,
            dense_layers=1,
            dense_dim=30,
        ),
        rotary=Rotary(100.0, interleaved=True),
    ),
    "cohere, smollm3, gpt2 by layer": dataclasses.replace(
        BASE,
        norm="layernorm",
        norm_bias=True,
        parallel="norm",
        qk_norm="each_head",
        qkv_clip=1.5,
        scale_by_layer=True,
        rotary=Rotary(100.0, interleaved=True, skip_every=2),
    ),
    "olmo2": dataclasses.replace(BASE, norm_position="output", qk_norm="all_heads"),
    "falcon": dataclasses.replace(
        BASE,
        norm="layernorm",
        norm_weights=False,
        parallel="norms",
        rotary=None,
        position_bias=Alibi(scaled=True),
    ),
}


def make(name, **changes):
    """A model, and random parameters in which every part shows."""
    config = dataclasses.replace(CONFIGS[name], **changes)
    model = GPT(config, V, T, "none", embed_dim=18, head_bias=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(shapes)["params"],
    )
    return model, params


def run(model, params, *inputs, **options):
    return jax.jit(model.apply, static_argnames=tuple(options))(
        {"params": params}, *inputs, **options
    )


def tokens(rows=2):
    return np.random.default_rng(0).integers(0, V, (rows, T))


SOME = [slow(name) if name in ("olmo2", "falcon") else name for name in CONFIGS]


@pytest.mark.parametrize("name", SOME)
def test_packed_documents_are_as_if_alone_and_scanned_as_unrolled(name):
    model, params = make(name)
    x = tokens()
    segments = np.repeat([[1, 2]], [10, 6], axis=1).repeat(2, axis=0)
    positions = np.r_[np.arange(10), np.arange(6)][None]
    packed = TextInputs(x, positions=positions, segment_ids=segments)
    logits = run(model, params, packed)["logits"]
    alone = [x[:, :10], np.pad(x[:, 10:], ((0, 0), (0, 4)))]
    first, second = np.split(run(model, params, np.concatenate(alone))["logits"], 2)
    np.testing.assert_allclose(logits[:, :10], first, atol=2e-5)
    np.testing.assert_allclose(logits[:, 10:], second[:, :6], atol=2e-5)

    unrolled, _ = make(name, scan_layers=False)
    stack = dict(params["stack"])
    first = len(jax.tree.leaves(stack.get("dense", {}))) and 1
    stack = unstack_layers(stack, 3 - first)
    if first:
        stack["dense"] = unstack_layers(stack["dense"], first)
    apart = run(unrolled, params | {"stack": stack}, packed)["logits"]
    np.testing.assert_allclose(apart, logits, atol=2e-5)


@pytest.mark.parametrize("name", SOME)
def test_a_cache_gives_what_the_whole_text_gives(name):
    model, params = make(name)
    x = tokens()
    whole = run(model, params, x)["logits"]

    @jax.jit
    def step(cache, ids, at):
        text = TextInputs(ids, positions=at)
        out = model.apply({"params": params}, text, cache, method="hidden")
        logits = model.apply({"params": params}, out["hidden"], method="head")
        return out["cache"], logits[..., :V]

    # A prompt of several tokens, then one by one.
    cache, found = step(model.empty_cache(2, T), x[:, :7], np.arange(7)[None])
    np.testing.assert_allclose(found, whole[:, :7], atol=2e-5)
    for i in range(7, T):
        cache, found = step(cache, x[:, i : i + 1], np.array([[i]]))
        np.testing.assert_allclose(found[:, 0], whole[:, i], atol=2e-5)


def test_the_cache_of_latent_attention_holds_latent_vectors():
    model, _ = make("deepseek")
    cache = model.empty_cache(2, T).self_attention
    assert (cache.k.shape, cache.v.shape) == ((3, 2, T, 1, 7), (3, 2, T, 1, 4))


def test_sinks_take_part_in_the_softmax():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 5, 2, 3))
    sinks = np.array([0.7, -1.2])
    found = attend(
        *(jnp.float32(x) for x in (q, k, v)),
        AttentionMask(causal=True),
        scale=0.5,
        sinks=jnp.float32(sinks),
    )
    scores = 0.5 * np.einsum("bthk,bshk->bhts", q, k)
    weights = np.where(np.tri(5), np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True) + np.exp(sinks)[:, None, None]
    expected = np.einsum("bhts,bshk->bthk", weights / total, v)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbours_turn_as_complex_numbers():
    # Su et al. 2021, equation 14: features 2i and 2i + 1.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 1, 10))
    rotary = Rotary(100.0, 0.6, interleaved=True)
    tables = rotary.tables(10, jnp.arange(4)[None])
    found = np.asarray(rotate(jnp.float32(x), *tables, interleaved=True))
    angle = np.arange(4)[:, None] * 100.0 ** (-np.arange(3) / 3)
    turned = (x[0, :, 0, 0:6:2] + 1j * x[0, :, 0, 1:6:2]) * np.exp(1j * angle)
    np.testing.assert_allclose(found[0, :, 0, 0:6:2], turned.real, atol=1e-5)
    np.testing.assert_allclose(found[0, :, 0, 1:6:2], turned.imag, atol=1e-5)
    np.testing.assert_array_equal(found[..., 6:], np.float32(x[..., 6:]))


def test_heads_are_normalized_jointly_or_each():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    weights = np.random.default_rng(1).normal(size=(4, 5))
    params = {"params": {"scale": jnp.float32(weights)}}
    for joint in (False, True):
        norm = Norm("layernorm", 1e-5, False, axis="kv", heads="heads", joint=joint)
        over = (-2, -1) if joint else -1
        centred = x - x.mean(over, keepdims=True)
        scale = np.sqrt((centred**2).mean(over, keepdims=True) + 1e-5)
        found = norm.apply(params, jnp.float32(x))
        np.testing.assert_allclose(found, centred / scale * weights, atol=1e-5)


def test_the_gate_of_gpt_oss_is_clamped_on_one_side():
    gate, x = np.array([-20.0, -1.0, 3.0, 20.0]), np.array([9.0, -9.0, 0.5, 1.0])
    limited = np.minimum(gate, 7)
    expected = (np.clip(x, -7, 7) + 1) * limited / (1 + np.exp(-1.702 * limited))
    found = clamped_swiglu(jnp.float32(gate), jnp.float32(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"parallel": "norm", "norm_position": "post"}, r"transformer\.norm_position"),
        ({"activation": "clamped_swiglu", "gated_mlp": False}, r"\.gated_mlp"),
        ({"global_layers": (1,)}, r"transformer\.global_layers.*transformer\.window"),
        ({"window": 4, "global_layers": (3,)}, r"transformer\.global_layers"),
        (
            {"window": 4, "global_layers": (1,), "global_every": 2},
            r"transformer\.global_every",
        ),
        ({"qkv_clip": 0.0}, r"transformer\.qkv_clip"),
        ({"latent": Latent(rotary_dim=6)}, r"latent\.rotary_dim"),
        ({"latent": Latent(4, 4, 2, 7)}, r"latent\.value_dim"),
        ({"latent": Latent(4, 4, 2, 3)}, r"transformer\.num_kv_heads"),
        ({"latent": Latent(4, 4, 2, 3), "key_bias": False}, r"transformer\.key_bias"),
        ({"experts": Experts(4, dense_layers=3)}, r"experts\.dense_layers"),
        (
            {"experts": Experts(4, dense_layers=1), "share_layers": True},
            r"share_layers = True.*experts\.dense_layers",
        ),
    ],
)
def test_what_cannot_be_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"number": 6, "groups": 4}, r"experts\.groups"),
        ({"number": 6, "groups": 6}, r"experts\.groups"),
        ({"number": 6, "groups": 3, "per_token": 3}, r"experts\.groups_per_token"),
        ({"shared_gate": True}, r"experts\.shared_gate"),
        ({"dense_dim": 4}, r"experts\.dense_dim"),
        ({"scale": 0.0}, r"experts\.scale"),
    ],
)
def test_experts_that_cannot_be_are_named(options, named):
    with pytest.raises(UserError, match=named):
        Experts(**options)
