"""The causal language-model loss against float64 NumPy, and its memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hlo_products import product_flops
from tiers import slow

from fmjax.data.text.decoder_pairs import DecoderPairs
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.terms import total

V = 101
CONFIG = TransformerConfig(num_layers=2, embed_dim=24, num_heads=4, dtype="float32")


def objective(**kwargs):
    tie = kwargs.pop("tie_embeddings", True)
    model = GPT(CONFIG, vocab_size=V, max_length=33, tie_embeddings=tie)
    return CausalLM(model, **kwargs)


def variables(obj):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
        nn.unbox(jax.eval_shape(obj.init, jax.random.key(0))),
    )


def batch(rows=4, length=33):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (rows, length + 1)).astype(np.int32)
    weights = np.ones((rows, length), np.float32)
    weights[1, 20:] = 0
    weights[3] = 0
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def loss(obj, v, data):
    return jax.jit(lambda v, data: obj.loss(v, data, None))(v, data)


def direct(obj, params, data):
    """The loss written down directly, holding all logits."""
    out = obj.model.apply({"params": params}, data["tokens"], method="hidden")
    logits = obj.model.apply({"params": params}, out["hidden"], method="head")[..., :V]
    log_p = jax.nn.log_softmax(logits)
    smooth = obj.label_smoothing
    target = jax.nn.one_hot(data["targets"], V) * (1 - smooth) + smooth / V
    nll = -(target * log_p).sum(-1)
    z = jax.nn.logsumexp(logits, -1) ** 2
    w = data["weights"]
    return ((nll + obj.z_loss * z) * w).sum() / w.sum()


# Few enough that gradients of logits are kept, and not a sum of the head's.
FEW = 6


@pytest.mark.parametrize(
    ("tie_embeddings", "z_loss", "smoothing", "chunks", "length"),
    [
        slow(True, 0, 0, 64, 33),
        (True, 0.01, 0.1, 5, 33),
        (False, 0, 0, 2, 33),
        slow(False, 0.01, 0, 33, 33),
        (True, 0.01, 0.1, 4, FEW),
        (False, 0, 0, 2, FEW),
    ],
)
def test_chunked_equals_direct(tie_embeddings, z_loss, smoothing, chunks, length):
    obj = objective(
        tie_embeddings=tie_embeddings,
        z_loss=float(z_loss),
        label_smoothing=float(smoothing),
        head_chunks=chunks,
    )
    params, data = variables(obj)["params"], batch(length=length)
    gradient = jax.value_and_grad(
        lambda p: total(obj.loss({"params": p}, data, None)[0])
    )
    a, grad_a = jax.jit(gradient)(params)
    kept = re.search(r"f32\[\d+,4,\d+,128\]", str(jax.make_jaxpr(gradient)(params)))
    assert bool(kept) == (length == FEW)
    b, grad_b = jax.jit(jax.value_and_grad(lambda p: direct(obj, p, data)))(params)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    flat_a, flat_b = (
        dict(jax.tree_util.tree_leaves_with_path(g)) for g in (grad_a, grad_b)
    )
    for path, x in flat_a.items():
        # Keys' offsets cancel in the softmax: their gradient is rounding alone.
        if "key_bias" in jax.tree_util.keystr(path):
            continue
        norm = np.linalg.norm(flat_b[path])
        assert np.linalg.norm(x - flat_b[path]) <= 1e-5 * norm, path


def test_value_against_float64():
    obj = objective(z_loss=0.01, label_smoothing=0.1)
    v, data = variables(obj), batch()
    terms, metrics, _ = loss(obj, v, data)
    logits = np.float64(jax.jit(obj.model.apply)(v, data["tokens"])["logits"])
    w = data["weights"]
    log_z = np.log(np.exp(logits).sum(-1))
    gold = np.take_along_axis(logits, data["targets"][..., None], -1)[..., 0]
    nll = ((log_z - gold) * w).sum()
    uniform = ((log_z - logits.mean(-1)) * w).sum()
    np.testing.assert_allclose(
        terms["cross_entropy"].sum, 0.9 * nll + 0.1 * uniform, rtol=1e-5
    )
    np.testing.assert_allclose(terms["z_loss"].sum, (log_z**2 * w).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"].sum, nll, rtol=1e-5)
    right = ((logits.argmax(-1) == data["targets"]) * w).sum()
    assert metrics["accuracy"].sum == right
    assert terms["cross_entropy"].weight == w.sum()
    assert terms["z_loss"].coefficient == 0.01


def test_loss_ignores_padding():
    obj = objective()
    v, data = variables(obj), batch()
    changed = {k: x.copy() for k, x in data.items()}
    changed["targets"][data["weights"] == 0] = 7
    a, b = (total(loss(obj, v, d)[0]) for d in (data, changed))
    np.testing.assert_array_equal(a, b)


def test_packed_pairs_have_the_loss_of_each_pair_alone():
    obj = objective()
    v, rng = variables(obj), np.random.default_rng(0)
    ids = [rng.integers(2, V, size).astype(np.int32) for size in (5, 3, 4, 6, 1, 2)]
    pairs = [(ids[i], np.append(ids[i + 1], 1)) for i in (0, 2, 4)]
    layout = DecoderPairs(33, True, 1, 1)
    (record,) = layout.records([(np.append(x, 1), y) for x, y in pairs])
    packed = {name: array[None] for name, array in layout.row(record).items()}
    found = loss(obj, v, packed)[1]["nll"]

    nll = count = 0
    for inputs, targets in pairs:
        text = np.concatenate([[1], inputs, targets])
        logits = jax.jit(obj.model.apply)(v, text[None, :-1])["logits"]
        logits = np.float64(logits)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll -= log_p[np.arange(len(text) - 1), text[1:]][-len(targets) :].sum()
        count += len(targets)
    np.testing.assert_allclose(found.sum, nll, rtol=1e-5)
    assert found.weight == count


def test_bits_per_byte():
    obj = objective()
    v, data = variables(obj), batch()
    data["target_bytes"] = np.float32([10, 20, 30, 0])
    _, metrics, _ = loss(obj, v, data)
    got = metrics["bits_per_byte"]
    np.testing.assert_allclose(got.sum, metrics["nll"].sum / np.log(2), rtol=1e-6)
    assert got.weight == 60


@pytest.mark.parametrize("devices", [1, 8])
def test_logits_of_a_batch_never_exist(devices):
    # Everything but the head is small here, so the head decides the memory.
    rows, length, vocab = 64, 64, 16384
    model = GPT(
        dataclasses.replace(CONFIG, embed_dim=16, num_layers=1),
        vocab_size=vocab,
        max_length=length,
    )
    obj = CausalLM(model, z_loss=1e-4, head_chunks=16)
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    rows_over_data = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec("data")
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spec = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    data = {"tokens": spec, "targets": spec, "weights": spec.update(dtype=jnp.float32)}
    shapes = nn.unbox(jax.eval_shape(obj.init, jax.random.key(0)))
    compiled = (
        jax.jit(
            jax.value_and_grad(lambda v, b: total(obj.loss(v, b, None)[0])),
            in_shardings=(everywhere, rows_over_data),
        )
        .lower(shapes, data)
        .compile()
    )
    logits = rows * length * vocab * 4 // devices
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 2
    held = re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    largest = max(int(np.prod([int(n) for n in dims.split(",")])) for dims in held)
    assert largest * 4 < logits / 2


@pytest.mark.parametrize("length", [33, pytest.param(FEW, marks=pytest.mark.slow)])
def test_z_loss_takes_no_products_of_its_own(length):
    data = batch(length=length)

    def flops(z_loss):
        obj = objective(z_loss=z_loss, tie_embeddings=False, head_chunks=4)
        gradient = jax.jit(jax.grad(lambda v: total(obj.loss(v, data, None).terms)))
        return product_flops(gradient.lower(variables(obj)).compile().as_text())

    assert flops(1e-4) == flops(0.0)
