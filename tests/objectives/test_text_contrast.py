"""Contrast of texts against its definition in float64, in pieces and on meshes."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from on_meshes import MESHES, assert_same_gradients, gradients_of
from tiers import slow

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.text_embedding import TextEmbedding
from fmjax.objectives.contrast import ranking_contrast
from fmjax.objectives.text_contrast import TextContrast, text_hashes

V, B, T = 50, 16, 6
BLOCKS = TransformerConfig(
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=24,
    dropout=0.1,
    attention_dropout=0.1,
    dtype="float32",
)
SIZES = {"vocab_size": V, "max_length": T, "vocab_multiple": 10}
BERT = Bert(BLOCKS, **SIZES, language_head=False)
MODELS = {
    "bert": BERT,
    "gpt": GPT(BLOCKS, **SIZES),
    "seq2seq": Seq2Seq(BLOCKS, BLOCKS, **SIZES, positions="learned"),
}


def batch(texts, repeated=()):
    """Rows of texts; those of `repeated` (row, text) -> (row, text) are equal."""
    rng = np.random.default_rng(texts)
    lengths = rng.integers(1, T + 1, (B, texts, 1))
    segments = (np.arange(T) < lengths).astype(np.int32)
    tokens = rng.integers(1, V, (B, texts, T)).astype(np.int32) * segments
    for one, other in dict(repeated).items():
        tokens[one], segments[one] = tokens[other], segments[other]
    weights = (np.arange(B) % 5 != 2).astype(np.float32)
    return {"tokens": tokens, "segment_ids": segments, "weights": weights}


def unboxed(objective):
    return nn.unbox(jax.jit(objective.init)(jax.random.key(0)))


def pooled(hidden, lengths, pooling):
    """Vectors of texts in float64, one by one."""
    found = []
    for vectors, length in zip(np.asarray(hidden, np.float64), lengths):
        x, at = vectors[:length], np.arange(1, length + 1)
        found.append(
            {
                "mean": lambda x=x: x.mean(0),
                "first": lambda x=x: x[0],
                "last": lambda x=x: x[-1],
                "max": lambda x=x: x.max(0),
                "weighted_mean": lambda x=x, at=at: at @ x / at.sum(),
                "mean_sqrt_length": lambda x=x: x.sum(0) / np.sqrt(len(x)),
            }[pooling]()
        )
    return np.stack(found)


def expected_loss(vectors, tokens, counts, scale, cosine, symmetric, masked):
    """The sum of cross-entropies over rows, with a loop over every pair of texts."""
    if cosine:
        vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    rows, texts = np.flatnonzero(counts), vectors.shape[1]

    def same(one, other):
        return masked and np.array_equal(tokens[one], tokens[other])

    total = 0.0
    for i in rows:
        logits, back = [], []
        for j in rows:
            for c in range(1, texts):
                known = same((j, c), (i, 1)) or same((j, c), (i, 0))
                known = known or (c == 1 and same((j, 0), (i, 0)))
                if (j, c) == (i, 1) or not known:
                    logits.append(scale * vectors[i, 0] @ vectors[j, c])
            known = same((j, 0), (i, 0)) or same((j, 0), (i, 1))
            if j == i or not (known or same((j, 1), (i, 1))):
                back.append(scale * vectors[j, 0] @ vectors[i, 1])
        match = scale * vectors[i, 0] @ vectors[i, 1]
        losses = [np.log(np.exp(x).sum()) - match for x in (logits, back)]
        total += np.mean(losses) if symmetric else losses[0]
    return total


@pytest.mark.parametrize(
    ("name", "texts", "pooling", "similarity", "symmetric", "masked"),
    [
        ("bert", 2, "mean", "cosine", False, True),
        ("gpt", 3, "last", "cosine", True, True),
        ("seq2seq", 4, "weighted_mean", "dot", False, False),
        slow("bert", 3, "first", "dot", True, False),
        slow("bert", 2, "max", "cosine", True, True),
        slow("gpt", 2, "mean_sqrt_length", "cosine", False, True),
    ],
)
def test_the_loss_is_its_definition(
    name, texts, pooling, similarity, symmetric, masked
):
    model = MODELS[name]
    objective = TextContrast(
        model,
        embedding=TextEmbedding(pooling=pooling),
        scale=3.0,
        similarity=similarity,
        symmetric=symmetric,
        mask_duplicates=masked,
        chunks=4,
    )
    # An anchor twice, a match twice, and a match that is another row's anchor.
    repeated = {(4, 0): (3, 0), (6, 1): (5, 1), (9, 1): (8, 0)}
    if texts > 2:
        repeated[10, 2] = (11, 1)
    data = batch(texts, repeated)
    variables = unboxed(objective)
    terms, metrics, _ = jax.jit(lambda v, d: objective.loss(v, d, None))(
        variables, data
    )
    flat = {k: v.reshape(-1, T) for k, v in data.items() if k != "weights"}
    text = TextInputs(flat["tokens"], segment_ids=flat["segment_ids"])
    method = model.encode if name == "seq2seq" else model.hidden
    hidden = jax.jit(lambda v, t: model.apply(v, t, method=method))(variables, text)
    vectors = pooled(hidden["hidden"], flat["segment_ids"].sum(1), pooling)
    vectors = vectors.reshape(B, texts, -1)
    counts = data["weights"] > 0
    expected = expected_loss(
        vectors, data["tokens"], counts, 3.0, similarity == "cosine", symmetric, masked
    )
    np.testing.assert_allclose(terms["contrastive"].sum, expected, rtol=1e-5)
    assert terms["contrastive"].weight == counts.sum()
    assert objective.weights(data)["contrastive"] == counts.sum()
    if similarity == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    likeness = vectors[counts][:, 0] @ vectors[counts][:, 1].T
    nearest = (np.diag(likeness)[:, None] + 1e-6 >= likeness).all(1)
    assert metrics["nearest"].sum == nearest.sum()


def test_equal_texts_in_a_batch_are_no_negatives():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(4, 1, 3)).astype(np.float32)
    texts = np.arange(8, dtype=np.uint32).reshape(4, 2, 1).repeat(2, 2)
    texts[3, 1] = texts[0, 1]  # rows 0 and 3 have the same match
    counts = np.ones(4, bool)
    masked = ranking_contrast(x, y, 1.0, counts, 2, texts)
    # As if the other row were not there.
    for row, others in ((0, [0, 1, 2]), (3, [3, 1, 2])):
        alone = ranking_contrast(x[others], y[others], 1.0, counts[:3], 1)
        np.testing.assert_allclose(masked[row], alone[0], rtol=1e-5)
    every = ranking_contrast(x, y, 1.0, counts, 2)
    np.testing.assert_allclose(masked[1:3], every[1:3], rtol=1e-6)
    assert (np.asarray(masked)[[0, 3]] < np.asarray(every)[[0, 3]]).all()


def test_hashes_are_equal_for_equal_texts_alone():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (3000, 8)).astype(np.int32)
    mask = np.arange(8) < rng.integers(1, 9, (3000, 1))
    hashes = np.asarray(text_hashes(tokens, mask))
    texts = [tuple(row[keep]) for row, keep in zip(tokens, mask)]
    assert len(set(texts)) == len({tuple(row) for row in hashes})
    assert len(set(zip(texts, map(tuple, hashes)))) == len(set(texts))


SINGLE = TextContrast(BERT, projection="tanh", chunks=4)
TRIPLES = TextContrast(
    BERT, embedding=TextEmbedding(pooling="first"), symmetric=True, chunks=4
)


@pytest.mark.parametrize(
    ("objective", "texts", "mesh", "microbatches"),
    [
        slow(SINGLE, 1, None, 4),
        (TRIPLES, 3, "data_fsdp_tensor", 2),
        slow(SINGLE, 1, "data_fsdp_tensor", 2),
        slow(TRIPLES, 3, None, 4),
        slow(TRIPLES, 3, "fsdp", 1),
    ],
    ids=lambda x: None if isinstance(x, int | str | None) else x.projection,
)
def test_neither_meshes_nor_microbatches_change_it(
    objective, texts, mesh, microbatches
):
    data = batch(texts, {(1, 0): (0, 0)})
    loss, gradients = gradients_of(objective, data, None)
    other = gradients_of(objective, data, MESHES.get(mesh), microbatches)
    np.testing.assert_allclose(other[0], loss, rtol=1e-6)
    assert_same_gradients(gradients, other[1])
    if mesh is None:  # GradCache with dropout, to 1e-6 of the whole gradient
        whole = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        errors = [np.abs(g - other[1][name]).max() for name, g in gradients.items()]
        assert max(errors) <= 1e-6 * whole


def test_a_single_text_is_read_with_two_dropout_masks():
    variables, data = unboxed(SINGLE), batch(1)
    keys = jax.random.split(jax.random.key(1), B)
    embed = jax.jit(lambda v, d, k: SINGLE.embed(v, d, k)[0]["texts"])
    vectors = np.asarray(embed(variables, data, keys))
    assert vectors.shape == (B, 2, 16)
    assert (np.abs(vectors[:, 0] - vectors[:, 1]).max(-1) > 1e-3).all()
    # Not in evaluation, where the projection is left out as well.
    there = jax.jit(lambda v, d: SINGLE.embed(v, d, None)[0]["texts"])
    plain = dataclasses.replace(SINGLE, projection="none")
    here = np.asarray(there(variables, data))
    np.testing.assert_array_equal(here[:, 0], here[:, 1])
    np.testing.assert_allclose(
        here, plain.embed(variables, data, None)[0]["texts"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("objective", "rows", "message"),
    [
        (
            TextContrast(BERT.clone(transformer=dataclasses.replace(
                BLOCKS, dropout=0.0, attention_dropout=0.0
            ))),
            {"tokens": (1, T), "segment_ids": (1, T), "weights": ()},
            "dropout",
        ),
        (
            TRIPLES,
            {"tokens": (T,), "targets": (T,), "weights": ()},
            r"data\.rows = 'texts'",
        ),
        (
            TRIPLES,
            {"tokens": (2, 9), "segment_ids": (2, 9), "weights": ()},
            r"bert\.max_length = 6",
        ),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(objective, rows, message):
    with pytest.raises(UserError, match=message):
        objective.check(rows, V)


def test_a_pooler_that_the_model_lacks_is_refused():
    with pytest.raises(UserError, match=r"bert\.pooler"):
        TextContrast(BERT, embedding=TextEmbedding(pooling="pooler"))
    with pytest.raises(UserError, match=r"text_contrast\.scale = 0"):
        TextContrast(BERT, scale=0.0)
