"""Every attention kernel gives what XLA's gives, gradients too; choices, refusals.

XLA's own is compared with float64 NumPy in test_gpt.py, test_attention_mask.py.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharding.test_platform import mesh_of
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.attention_kernels import (
    blockwise,
    cudnn,
    splash_blocks,
    triton,
    triton_blocks,
)
from fmjax.models.layers.attention_kernels.attend import attend
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_mask import (
    AttentionMask,
    cached_self_attention,
    self_attention,
)
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.position_bias import (
    Alibi,
    RelativeBuckets,
    RelativeGrid,
)
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.sharding.xla_options import SCOPED_VMEM, compiled_with

B, T, K = 2, 256, 16
SEGMENTS = np.repeat([[1, 2, 3, 0], [1, 2, 3, 0]], [100, 60, 70, 26], axis=1)
SEGMENTS[1] = np.repeat([1, 2, 0], [200, 51, 5])
PADDING = np.arange(T) < np.array([[230], [129]])


def case(H=2, G=2, S=T, softcap=None, dtype=jnp.float32, **mask):
    mask = {name: jnp.asarray(x) if np.ndim(x) else x for name, x in mask.items()}
    return H, G, S, softcap, dtype, AttentionMask(**mask)


SEGMENTED = {"query_segment_ids": SEGMENTS, "key_segment_ids": SEGMENTS}
CASES = {
    "causal": case(causal=True),
    "bidirectional": case(),
    "segments": case(causal=True, **SEGMENTED),
    "padding": case(padding_mask=PADDING),
    "segments and padding": case(**SEGMENTED, padding_mask=SEGMENTS > 0),
    "causal window": case(causal=True, window=37),
    "window": case(window=150),
    "window in this layer": case(
        causal=True, window=37, window_applies=np.array([True])[0]
    ),
    "window in other layers": case(
        causal=True, window=37, window_applies=np.array([False])[0]
    ),
    "softcap": case(causal=True, softcap=2.0, **SEGMENTED),
    "grouped": case(H=4, causal=True),
    "one key head": case(H=4, G=1, padding_mask=PADDING),
    "cross": case(S=384),
    "bfloat16": case(H=4, causal=True, dtype=jnp.bfloat16),
    "all": case(
        H=4, causal=True, window=90, softcap=3.0, padding_mask=SEGMENTS > 0, **SEGMENTED
    ),
}

# The others are combined in these.
ALIKE = (
    *("bidirectional", "segments", "padding", "causal window", "window", "softcap"),
    *("window in other layers", "grouped"),
)
EACH_KIND = [slow(name) if name in ALIKE else name for name in CASES]


def inputs(name):
    H, G, S, softcap, dtype, mask = CASES[name]
    rng = np.random.default_rng(0)
    shapes = ((B, T, H, K), (B, S, G, K), (B, S, G, K), (B, T, H, K))
    q, k, v, into_out = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    # What padding attends to is of no account.
    tokens = np.ones((B, T), bool)
    if mask.query_segment_ids is not None:
        tokens = SEGMENTS > 0
    real = tokens[..., None, None]
    return (2 * q, k, v), jnp.where(real, into_out, 0), real, mask, softcap


def run(implementation, name, block=None):
    """Output, where padding's is zero, and gradients of queries, keys and values."""
    arguments, into_out, real, mask, softcap = inputs(name)

    @jax.jit
    def both(arguments, mask, into_out):
        out, pull = jax.vjp(
            lambda q, k, v: attend(
                q,
                k,
                v,
                mask,
                softcap=softcap,
                implementation=implementation,
                block=block,
            ),
            *arguments,
        )
        return jnp.where(real, out, 0), *pull(into_out)

    return [np.float64(x) for x in both(arguments, mask, into_out)]


def assert_equal(got, want, dtype):
    # Kernels round weights and sums to bfloat16 (8 bits) at other places.
    bound = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(got, want):
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)
        np.testing.assert_allclose(a, b, atol=10 * bound, rtol=0)


@pytest.mark.parametrize("name", EACH_KIND)
def test_splash_equals_xla(name):
    assert_equal(run("splash", name, block=128), run("xla", name), CASES[name][4])


def test_splash_equals_xla_with_two_backward_kernels(monkeypatch):
    monkeypatch.setattr(splash_blocks, "MOST_PARTS", 1)
    assert not splash_blocks.block_sizes(T, T, K, "", True, 128).use_fused_bwd_kernel
    for name in ("grouped", "all"):
        assert_equal(run("splash", name, block=128), run("xla", name), jnp.float32)


@pytest.mark.parametrize("causal", [True, False])
def test_splash_pads_rows(causal):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, 197, 2, K)), jnp.float32) for _ in "qkv")

    def gradients(implementation):
        def loss(q, k, v):
            out = attend(q, k, v, self_attention(causal), implementation=implementation)
            return (out * jnp.arange(K)).sum(), out

        (_, out), found = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return [np.float64(x) for x in (out, *found)]

    assert_equal(gradients("splash"), gradients("xla"), jnp.float32)


@pytest.mark.parametrize("name", EACH_KIND)
def test_blockwise_equals_xla(name):
    assert_equal(run("blockwise", name, block=96), run("xla", name), CASES[name][4])


@pytest.mark.parametrize("name", ["all", "segments and padding"])
def test_blockwise_equals_xla_with_sinks(name):
    (q, k, v), into_out, real, mask, softcap = inputs(name)
    sinks = jnp.linspace(-1.0, 2.0, q.shape[2])

    def both(implementation):
        out, pull = jax.vjp(
            lambda *arguments: attend(
                *arguments[:3],
                mask,
                softcap=softcap,
                sinks=arguments[3],
                implementation=implementation,
                block=128,
            ),
            *(q, k, v, sinks),
        )
        return [np.float64(x) for x in (jnp.where(real, out, 0), *pull(into_out))]

    assert_equal(both("blockwise"), both("xla"), jnp.float32)


@pytest.mark.parametrize("name", EACH_KIND)
def test_triton_equals_xla(name):
    assert_equal(run("triton", name), run("xla", name), CASES[name][4])


@pytest.mark.parametrize(
    ("mask", "width"),
    [
        ({"causal": True}, 72),
        ({}, 8),
        slow({"causal": True, "window": 50}, 160),
        slow({"padding_mask": np.arange(77) < np.array([[60], [1]])}, 16),
    ],
    ids=["causal", "narrow heads", "wide heads", "padding"],
)
def test_triton_takes_any_length_and_width(mask, width):
    rng = np.random.default_rng(0)
    keys = 77 if "padding_mask" in mask else 150
    shapes = [(B, 150, 2, width), *[(B, keys, 1, width)] * 2]
    arguments = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]

    def gradients(implementation):
        def loss(q, k, v):
            options = {"implementation": implementation, "scale": 0.3}
            out = attend(q, k, v, AttentionMask(**mask), **options)
            return (out * jnp.arange(width) / width).sum(), out

        found = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arguments)
        (_, out), into = found
        return [np.float64(x) for x in (out, *into)]

    assert_equal(gradients("triton"), gradients("xla"), jnp.float32)


# A number for each bucket and head, or a slope for each head; positions of the keys.
BIASES = {
    "alibi": (None, "all"),
    "alibi without order": (None, "padding"),
    "buckets": (RelativeBuckets(8, 20), "grouped"),
    "buckets without order": (RelativeBuckets(12, 50), "segments and padding"),
    "buckets, odd lengths": (RelativeBuckets(32, 128), "causal"),
}


def with_bias(implementation, name, mesh=None):
    """Output, and gradients of queries, keys, values and numbers of buckets."""
    buckets, of_mask = BIASES[name]
    arguments, into_out, real, mask, softcap = inputs(of_mask)
    if "odd" in name:
        arguments = tuple(x[:, : T - 39] for x in arguments)
        into_out, real = into_out[:, : T - 39], real[:, : T - 39]
    rows, H = arguments[0].shape[1:3]
    positions = np.arange(rows)[None]
    if mask.query_segment_ids is not None:
        first = np.diff(SEGMENTS, prepend=-1) != 0
        positions = positions - np.maximum.accumulate(positions * first, axis=1)
    positions = jnp.asarray(positions, jnp.int32)
    if buckets is None:
        bias = DistanceBias.alibi(H, positions, positions, 0.3)
    else:
        table = np.random.default_rng(1).normal(size=(buckets.number, H))
        table = jnp.asarray(table, jnp.float32)
        options = {"buckets": buckets, "causal": mask.causal}
        bias = DistanceBias(positions, positions, table=table, **options)
    options = {"softcap": softcap, "implementation": implementation}

    @jax.jit
    def both(arguments, table, mask, into_out):
        def attended(q, k, v, table):
            own = dataclasses.replace(bias, table=table)
            return attend(q, k, v, mask, bias=own, **options)

        out, pull = jax.vjp(attended, *arguments, table)
        return jnp.where(real, out, 0), *pull(into_out)

    found = both(arguments, bias.table, mask, into_out)
    return [np.float64(x) for x in found if x is not None]


@pytest.mark.parametrize("name", [slow(n) if "without" in n else n for n in BIASES])
def test_triton_equals_xla_with_a_bias_by_distance(name):
    found = with_bias("triton", name)
    assert len(found) == (4 if BIASES[name][0] is None else 5)
    assert_equal(found, with_bias("xla", name), jnp.float32)


@pytest.mark.parametrize("name", ["buckets without order", slow("alibi")])
def test_a_bias_by_distance_on_a_mesh_equals_one_device(name):
    config = MeshConfig(data=2, fsdp=1, tensor=2)
    mesh = config.build(jax.devices()[:4])
    want = with_bias("xla", name)
    with on_mesh(mesh, config.all_rules):
        got = with_bias("triton", name)
    assert_equal(got, want, jnp.float32)


@pytest.mark.parametrize("name", [n for n in CASES if n != "cross"])
def test_ranges_of_blocks_are_what_the_mask_leaves(name):
    mask, q, k = CASES[name][5], 64, 32
    x = jnp.zeros((B, T, 2, K))
    call = AttentionCall(x, x, x, mask, None, 1.0, None, 0.0, None)
    found = triton.ranges(call, triton_blocks.Blocks(q, k, 4, 1))
    array = mask.to_array(T, T)
    array = np.ones((1, T, T), bool) if array is None else np.asarray(array)
    array = np.broadcast_to(array, (B, T, T)).reshape(B, T // q, q, T // k, k)
    seen = array.any((2, 4))
    for (first, last), there in zip(found, (seen, np.swapaxes(seen, 1, 2))):
        places = np.arange(there.shape[-1])
        inside = (places >= first[..., None]) & (places < last[..., None])
        inside = np.broadcast_to(inside, there.shape)
        if mask.padding_mask is None:
            np.testing.assert_array_equal(inside, there)
        # A block of padding alone may be visited for nothing.
        assert not (there & ~inside).any()


@pytest.mark.parametrize("bias", ["none", "alibi", "buckets"])
def test_triton_is_compiled_for_gpus(bias):
    x = jnp.zeros((1, T, 4, 64), jnp.bfloat16)
    mask = self_attention(True, jnp.ones((1, T), jnp.int32))
    places, table = jnp.arange(T)[None], jnp.ones((32, 4))
    buckets = RelativeBuckets()

    def gradient(x, table):
        def loss(x, table):
            by_distance = {
                "none": None,
                "alibi": DistanceBias.alibi(4, places, places),
                "buckets": DistanceBias(places, places, None, table, buckets, True),
            }[bias]
            return attend(x, x, x, mask, softcap=30.0, bias=by_distance).sum()

        return jax.grad(loss, (0, 1))(x, table)

    with jax.sharding.use_abstract_mesh(mesh_of("gpu")):
        traced = jax.jit(gradient).trace(x, table)
        lowered = traced.lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    for name in ("forward", "into_queries", "into_keys"):
        assert text.count(f'name = "flash_attention_{name}_causal"') == 1


@pytest.mark.parametrize("name", [slow("grouped"), "all"])
@pytest.mark.parametrize("implementation", ["splash", "blockwise", "triton"])
def test_kernels_on_a_mesh_equal_xla_on_one_device(implementation, name):
    config = MeshConfig(data=1, fsdp=2, tensor=4)
    if CASES[name][1] % 4:
        config = MeshConfig(data=2, fsdp=1, tensor=2, expert=1)
    sizes = config.data * config.fsdp * config.tensor
    mesh = config.build(jax.devices()[:sizes])
    want = run("xla", name)
    with on_mesh(mesh, config.all_rules):
        got = run(implementation, name)
    assert_equal(got, want, jnp.float32)


def largest(function, *arguments):
    """Elements of the largest array in a function's jaxpr."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_blockwise_memory_grows_with_rows_not_with_their_square():
    def gradient(x):
        mask = self_attention(True, jnp.ones(x.shape[:2], jnp.int32))

        def loss(x):
            return attend(x, x, x, mask, implementation="blockwise").sum()

        return jax.grad(loss)(x)

    sizes = [
        largest(gradient, jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32))
        for length in (4096, 8192)
    ]
    assert sizes == [4096 * blockwise.BLOCK, 8192 * blockwise.BLOCK]


@pytest.mark.parametrize("bias", [Alibi(), RelativeBuckets()])
def test_a_bias_by_distance_needs_no_array_on_gpus(bias):
    length = 1024
    config = TransformerConfig(
        num_layers=1, embed_dim=32, num_heads=2, position_bias=bias, dtype="bfloat16"
    )
    model = GPT(config, vocab_size=40, max_length=length)
    tokens = jnp.zeros((1, length), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens[:, :4])

    def gradient(params):
        loss = lambda p: model.apply(p, tokens)["logits"].sum()  # noqa: E731
        return jax.grad(loss)(params)

    with jax.sharding.use_abstract_mesh(mesh_of("gpu")):
        assert largest(gradient, shapes) < length**2
    assert largest(gradient, shapes) >= length**2


def kernels_of(platform, **changes):
    """Names of primitives that tell the kernel that "auto" takes on a platform."""
    shape = (1, changes.pop("T", T), 2, changes.pop("K", 64))
    x = jnp.zeros(shape, changes.pop("dtype", jnp.bfloat16))
    mask = changes.pop("mask", AttentionMask(causal=True))
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        text = str(jax.make_jaxpr(lambda x: attend(x, x, x, mask, **changes))(x))
    found = [name for name in ("pallas_call", "dot_product_attention") if name in text]
    return found or (["scan"] if "scan" in text else ["xla"])


def test_auto_takes_splash_on_tpus_and_says_once_why_not(capsys):
    assert kernels_of("tpu") == ["pallas_call"]
    assert kernels_of("tpu", softcap=5.0) == ["pallas_call"]
    assert capsys.readouterr().err == ""
    bias = jnp.zeros((1, 2, T, T))
    keys = jax.random.split(jax.random.key(0), 1)
    cache = cached_self_attention(jnp.arange(T)[None])
    for changes, reason in (
        ({"bias": bias}, "transformer.position_bias"),
        ({"dropout_rate": 0.1, "keys": keys}, "transformer.attention_dropout = 0.1"),
        ({"T": 130}, "130 queries a row would have to be padded to 256"),
        ({"mask": cache}, "key-value cache"),
    ):
        for _ in range(2):
            assert kernels_of("tpu", **changes) == ["xla"]
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert reason in lines[0]
    # Nothing is dropped without keys.
    assert kernels_of("tpu", dropout_rate=0.1) == ["pallas_call"]


def test_auto_takes_the_kernel_of_gpus_that_needs_no_array(capsys, monkeypatch):
    by_cudnn = []  # which is not installed
    monkeypatch.setattr(
        cudnn, "attention", lambda call: by_cudnn.append(call.mask) or call.q
    )
    for mask in (AttentionMask(causal=True), AttentionMask()):
        kernels_of("gpu", mask=mask)
        assert by_cudnn.pop() == mask
    assert capsys.readouterr().err == ""
    segmented = self_attention(True, jnp.ones((1, T), jnp.int32))
    for changes, reason in (
        ({"mask": segmented}, "an array [T, S]"),
        ({"softcap": 5.0}, "transformer.attention_softcap = 5.0"),
    ):
        for _ in range(2):
            assert kernels_of("gpu", **changes) == ["pallas_call"]
        (line,) = capsys.readouterr().err.splitlines()
        assert "'triton', not 'cudnn'" in line
        assert reason in line
    assert kernels_of("gpu", mask=AttentionMask(window=9)) == ["pallas_call"]
    # Of a GPU that is not known to be a Hopper or later.
    assert kernels_of("gpu", K=256) == ["pallas_call"]
    assert "256 wide, not a multiple of 8 up to 128" in capsys.readouterr().err
    assert kernels_of("gpu", T=197) == ["pallas_call"]
    assert "an odd length (197)" in capsys.readouterr().err
    assert kernels_of("gpu", dtype=jnp.float32) == ["xla"]
    assert "its inputs are float32" in capsys.readouterr().err


def test_auto_goes_over_blocks_where_long_rows_have_no_other_kernel(capsys):
    assert kernels_of("cpu", T=2048) == ["xla"]
    assert kernels_of("cpu", T=4096) == ["scan"]
    assert capsys.readouterr().err == ""
    assert kernels_of("tpu", T=4100) == ["pallas_call"]
    assert kernels_of("gpu", T=4096, dtype=jnp.float32) == ["scan"]
    assert "its inputs are float32" in capsys.readouterr().err


def test_cudnn_is_told_windows_and_causality_without_an_array(monkeypatch):
    told = []
    real = jax.nn.dot_product_attention

    def kernel(*arguments, implementation, **named):
        told.append((implementation, named["mask"] is None))
        return real(*arguments, implementation="xla", **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    for name in ("causal", "causal window", "grouped", "window", "all", "bfloat16"):
        _, _, _, softcap, _, mask = CASES[name]
        if softcap is None:
            arguments, *_ = inputs(name)
            q, k, v = (jnp.bfloat16(x) for x in arguments)
            got = attend(q, k, v, mask, implementation="cudnn")
            assert told.pop() == ("cudnn", mask.causal)
            want = attend(q, k, v, mask, implementation="xla")
            np.testing.assert_allclose(*np.float32([got, want]), atol=0.05)


@pytest.mark.parametrize(
    ("implementation", "changes", "reason"),
    [
        ("splash", {"T": 130}, "130 queries a row would have to be padded to 256"),
        ("splash", {"bias": jnp.zeros((1, 2, T, T))}, "transformer.position_bias"),
        ("blockwise", {"bias": jnp.zeros((1, 2, T, T))}, "transformer.position_bias"),
        ("cudnn", {"dtype": jnp.float32}, "inputs are float32"),
        ("cudnn", {"softcap": 3.0}, "transformer.attention_softcap = 3.0"),
        ("triton", {"bias": jnp.zeros((1, 2, T, T))}, "transformer.position_bias"),
    ],
)
def test_a_kernel_that_is_asked_for_is_refused_by_name(implementation, changes, reason):
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        kernels_of("cpu", implementation=implementation, **changes)
    assert f"transformer.attention = '{implementation}'" in str(error.value)


def test_rows_that_a_mesh_does_not_divide_are_refused_by_splash():
    config = MeshConfig(data=4, tensor=2)
    x = jnp.zeros((6, T, 2, 64))
    with (
        on_mesh(config.build(), config.all_rules),
        pytest.raises(UserError, match="6 rows cannot be divided among 4 devices"),
    ):
        attend(x, x, x, AttentionMask(), implementation="splash")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"attention": "splash", "position_bias": Alibi()}, "position_bias = @alibi()"),
        ({"attention": "triton", "position_bias": RelativeGrid()}, "@relative_grid()"),
        ({"attention": "cudnn", "attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"attention": "cudnn", "attention_softcap": 9.0}, "attention_softcap = 9.0"),
        ({"attention": "triton", "attention_sinks": True}, "attention_sinks = True"),
    ],
)
def test_a_config_whose_kernel_cannot_compute_it_is_refused(fields, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        TransformerConfig(num_layers=1, embed_dim=8, num_heads=2, **fields)


@pytest.mark.parametrize(
    ("kernel", "fields"),
    [
        slow("splash", {"window": 50, "global_every": 2}),
        slow("triton", {"window": 50, "global_every": 2}),
        slow("triton", {"position_bias": Alibi()}),
        slow("triton", {"position_bias": Alibi(scaled=True), "scan_layers": False}),
        slow("triton", {"position_bias": RelativeBuckets()}),
        ("triton", {"position_bias": RelativeBuckets(8, 30, per_layer=True)}),
    ],
)
def test_models_train_and_decode_alike(kernel, fields):
    config = TransformerConfig(
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=2,
        bias=False,
        remat="full",
        **fields,
    )
    tokens = jax.random.randint(jax.random.key(0), (2, T), 0, 40)

    def run(attention):
        c = dataclasses.replace(config, attention=attention)
        model = GPT(c, vocab_size=40, max_length=T)
        params = jax.jit(model.init)(jax.random.key(1), tokens[:, :4])

        def loss(params):
            logits = model.apply(params, tokens)["logits"]
            return jax.nn.logsumexp(logits, -1).mean() - logits[..., 3].mean()

        # A key-value cache is read by another kernel, whichever is asked for.
        cache = model.empty_cache(2, T)
        hidden = functools.partial(model.apply, method="hidden")
        out = jax.jit(hidden)(params, tokens[:, :3], cache=cache)
        return jax.jit(jax.value_and_grad(loss))(params), out["hidden"]

    got, want = run(kernel), run("xla")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        a, b = (x.unbox() if hasattr(x, "unbox") else x for x in (a, b))
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_blocks_divide_the_length_and_grow_with_the_chip():
    for length in (128, 384, 640, 1024, 1152, 2048, 8192):
        for kind in ("TPU v5 lite", "TPU v6 lite", "another"):
            sizes = splash_blocks.block_sizes(length, 2 * length, 128, kind, True)
            assert length % sizes.block_q == 0
            assert 2 * length % sizes.block_kv == 0


def test_blocks_are_as_large_as_they_are_bound():
    sizes = splash_blocks.block_sizes(8192, 8192, 128, "TPU v5 lite", True, 256)
    assert sizes.block_q == sizes.block_kv == sizes.block_kv_dkv == 256
    with pytest.raises(UserError, match=r"attention_block = 100: expected a multiple"):
        TransformerConfig(1, 8, 2, attention_block=100)


def test_blocks_are_larger_where_a_program_is_compiled_with_much_vmem():
    def largest(options):
        with compiled_with(options):
            return splash_blocks.block_sizes(
                8192, 8192, 128, "TPU v5 lite", True
            ).block_q

    assert largest(None) == 1024
    assert largest({SCOPED_VMEM: 16384}) == 1024
    assert largest({SCOPED_VMEM: 98304}) == 2048
    with compiled_with({SCOPED_VMEM: 98304}):
        assert splash_blocks.block_sizes(8192, 8192, 128, "TPU v4", True).block_q == 512


def test_short_rows_take_their_keys_in_one_block_of_the_backward_kernel():
    def parts(length, masked):
        sizes = splash_blocks.block_sizes(length, length, 64, "TPU v5 lite", masked)
        return length // sizes.block_kv_dkv

    with compiled_with({SCOPED_VMEM: 98304}):
        assert [parts(n, masked=True) for n in (512, 1024, 2048)] == [1, 1, 4]
        assert [parts(n, masked=False) for n in (1024, 2048, 4096)] == [1, 1, 4]
