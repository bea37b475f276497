"""Attention over sequences that devices share equals XLA's on one device.

Rings and gathered keys, in natural and in zig-zag order, gradients too.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.layers.attention_kernels.attend import attend
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.zigzag import (
    from_zigzag,
    to_zigzag,
    whole_from_zigzag,
    whole_to_zigzag,
    zigzag_order,
)
from fmjax.sharding.mesh import MeshConfig, on_mesh

B, T, H, G, K = 2, 64, 4, 2, 8
MESH = MeshConfig(data=2, context=4)
JOINT = MeshConfig(data=1, fsdp=2, context=2, tensor=2)
SEGMENTS = np.repeat([[1, 2, 3, 0], [1, 2, 3, 0]], [25, 15, 18, 6], axis=1)
SEGMENTS[1] = np.repeat([1, 2, 0], [50, 13, 1])
PADDING = np.arange(T) < np.array([[55], [33]])
SEGMENTED = {"query_segment_ids": SEGMENTS, "key_segment_ids": SEGMENTS}
CASES = {
    "causal": {"causal": True},
    "bidirectional": {},
    "segments": {"causal": True, **SEGMENTED},
    "bidirectional segments": SEGMENTED,
    "padding": {"padding_mask": PADDING},
    "causal, segments and padding": {
        "causal": True,
        "padding_mask": SEGMENTS > 0,
        **SEGMENTED,
    },
}
WINDOWS = {
    "causal window": {"causal": True, "window": 11},
    "window": {"window": 20},
    "window and segments": {"causal": True, "window": 30, **SEGMENTED},
    "window in other layers": {
        "causal": True,
        "window": 11,
        "window_applies": np.array([False])[0],
    },
}


def mask_of(case: dict) -> AttentionMask:
    return AttentionMask(
        **{name: jnp.asarray(x) if np.ndim(x) else x for name, x in case.items()}
    )


def inputs(case: dict, queries=T, keys=T):
    """Queries, keys and values; the gradient of outputs, and which are of tokens."""
    rng = np.random.default_rng(0)
    shapes = [(B, queries, H, K), (B, keys, G, K), (B, keys, G, K), (B, queries, H, K)]
    q, k, v, into_out = (rng.normal(size=s).astype(np.float32) for s in shapes)
    tokens = np.ones((B, queries), bool)
    if case.get("query_segment_ids") is not None:
        tokens = case["query_segment_ids"] > 0
    tokens = tokens[..., None, None]
    return (2 * q, k, v), np.where(tokens, into_out, 0), tokens


def results(function, arguments, into_out, tokens):
    """Output, where padding's is zero, and gradients."""

    @jax.jit
    def both(arguments, into_out):
        out, pull = jax.vjp(function, *arguments)
        return jnp.where(tokens, out, 0), *pull(into_out)

    return [np.float64(x) for x in both(arguments, into_out)]


def on_one_device(case, softcap=None, bias=None, sinks=(), **lengths):
    """Of `sinks`, a tuple of one array or of none, there is a gradient too."""
    arguments, *given = inputs(case, **lengths)

    def function(q, k, v, sinks=None):
        return attend(
            q,
            k,
            v,
            mask_of(case),
            softcap=softcap,
            bias=bias,
            implementation="xla",
            sinks=sinks,
        )

    return results(function, (*arguments, *sinks), *given)


def on_devices(
    case,
    how,
    mesh=MESH,
    zigzag=False,
    softcap=None,
    bias=None,
    kernel="auto",
    sinks=(),
    **lengths,
):
    arguments, *given = inputs(case, **lengths)
    devices, rules = mesh.build(), mesh.all_rules
    mask = mask_of(case)

    def function(q, k, v, sinks=None):
        own, own_bias = mask, bias
        if zigzag:
            q, k, v = map(to_zigzag, (q, k, v))
            own = dataclasses.replace(
                mask,
                zigzag=True,
                query_segment_ids=whole_to_zigzag(mask.query_segment_ids),
                key_segment_ids=whole_to_zigzag(mask.key_segment_ids),
                padding_mask=whole_to_zigzag(mask.padding_mask),
            )
            if bias is not None:
                own_bias = bias[:, :, zigzag_order(bias.shape[2])]
        out = attend(
            q,
            k,
            v,
            own,
            softcap=softcap,
            bias=own_bias,
            context_attention=how,
            implementation=kernel,
            sinks=sinks,
        )
        return from_zigzag(out) if zigzag else out

    with on_mesh(devices, rules):
        return results(function, (*arguments, *sinks), *given)


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("zigzag", [True, slow(False)])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", ["ring", "all_gather"])
def test_devices_compute_what_one_does(how, name, zigzag):
    case = CASES[name]
    got = on_devices(case, how, zigzag=zigzag)
    assert_equal(got, on_one_device(case))


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_taken_by_gathered_keys(name):
    case = WINDOWS[name]
    assert_equal(on_devices(case, "auto", zigzag=True), on_one_device(case))
    with pytest.raises(UserError, match=r"transformer\.window"):
        on_devices(case, "ring")


def test_soft_caps_and_other_axes():
    case = CASES["segments"]
    for how in ("ring", "all_gather"):
        got = on_devices(case, how, JOINT, zigzag=True, softcap=2.0)
        assert_equal(got, on_one_device(case, softcap=2.0))


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
def test_kernels_of_gathered_keys(kernel):
    case = CASES["segments"]
    got = on_devices(case, "all_gather", zigzag=True, kernel=kernel)
    assert_equal(got, on_one_device(case))


def test_biases_are_taken_by_gathered_keys():
    bias = np.random.default_rng(1).normal(size=(1, H, T, T)).astype(np.float32)
    case = CASES["segments"]
    got = on_devices(case, "auto", JOINT, zigzag=True, bias=bias)
    assert_equal(got, on_one_device(case, bias=bias))
    with pytest.raises(UserError, match="position_bias"):
        on_devices(case, "ring", bias=bias)


@pytest.mark.parametrize("kernel", ["xla", "blockwise"])
@pytest.mark.parametrize("name", ["causal window", "window and segments"])
def test_sinks_are_taken_by_gathered_keys(name, kernel):
    case = WINDOWS[name]
    sinks = (np.linspace(-1, 3, H, dtype=np.float32),)
    got = on_devices(case, "auto", JOINT, zigzag=True, kernel=kernel, sinks=sinks)
    assert_equal(got, on_one_device(case, sinks=sinks))
    with pytest.raises(UserError, match="attention_sinks"):
        on_devices({"causal": True}, "ring", sinks=sinks)


@pytest.mark.parametrize("how", ["ring", "all_gather"])
def test_queries_of_another_sequence(how):
    case = {"padding_mask": np.arange(96) < np.array([[90], [40]])}
    got = on_devices(case, how, keys=96)
    assert_equal(got, on_one_device(case, keys=96))


@pytest.mark.parametrize(
    ("case", "zigzag"),
    [
        ({"causal": True}, True),
        slow({"causal": True}, False),
        slow({}, False),
        (
            {
                "causal": True,
                "query_segment_ids": np.repeat(SEGMENTS, 8, axis=1),
                "key_segment_ids": np.repeat(SEGMENTS, 8, axis=1),
            },
            True,
        ),
    ],
    ids=["causal", "natural order", "bidirectional", "segments"],
)
@pytest.mark.parametrize("kernel", ["splash", "triton"])
def test_a_ring_of_fused_kernels(kernel, case, zigzag):
    got = on_devices(
        case,
        "ring",
        MeshConfig(data=2, context=2, tensor=2),
        zigzag=zigzag,
        kernel=kernel,
        queries=512,
        keys=512,
    )
    assert_equal(got, on_one_device(case, queries=512, keys=512))


def test_zigzag_order_is_a_permutation_that_devices_can_undo():
    mesh = MESH.build()
    x = np.arange(B * T * 3, dtype=np.float32).reshape(B, T, 3)
    with on_mesh(mesh, MESH.all_rules):
        order = zigzag_order(T)
        there = jax.jit(to_zigzag)(x)
        back = jax.jit(from_zigzag)(there)
        whole = whole_to_zigzag(x), whole_from_zigzag(whole_to_zigzag(x))
    np.testing.assert_array_equal(np.sort(order), np.arange(T))
    np.testing.assert_array_equal(there, x[:, order])
    np.testing.assert_array_equal(whole[0], x[:, order])
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(whole[1], x)


def test_zigzag_order_balances_causal_attention():
    length, devices = 4096, 8
    with on_mesh(MeshConfig(context=devices).build(), MESH.all_rules):
        order = zigzag_order(length)
    # Query i attends to i + 1 keys.
    zigzag, natural = (
        (positions + 1).reshape(devices, -1).sum(1)
        for positions in (order, np.arange(length))
    )
    assert zigzag.max() / zigzag.mean() <= 1.0001
    assert natural.max() / natural.mean() > 1.8
