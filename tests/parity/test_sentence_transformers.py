"""Contrast of texts against the losses of sentence-transformers, through a whole model.

The library takes long to import, so each test does so itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import fmjax
from fmjax.interop.hugging_face import import_model
from fmjax.models.text_embedding import TextEmbedding
from fmjax.objectives.text_contrast import TextContrast
from fmjax.training.accumulation import accumulate
from fmjax.training.state import State
from fmjax.training.step import example_keys

pytestmark = pytest.mark.slow

V, B, T = 48, 8, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT without dropout."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=T,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    place = tmp_path_factory.mktemp("bert")
    transformers.BertModel(config).save_pretrained(place)
    return place


def rows(texts):
    """Rows of texts of several lengths, all different."""
    rng = np.random.default_rng(texts)
    segments = (np.arange(T) < rng.integers(2, T + 1, (B, texts, 1))).astype(np.int32)
    tokens = rng.integers(1, V, (B, texts, T)).astype(np.int32) * segments
    weights = np.ones(B, np.float32)
    return {"tokens": tokens, "segment_ids": segments, "weights": weights}


def theirs(folder, name, batch, pooling, **options):
    """The loss and the gradient of the table, by a loss of sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses, modules

    transformer = modules.Transformer(str(folder))
    pool = modules.Pooling(16, pooling_mode=pooling)
    model = SentenceTransformer(modules=[transformer, pool], device="cpu")
    features = [
        {
            "input_ids": torch.tensor(batch["tokens"][:, text].astype(np.int64)),
            "attention_mask": torch.tensor(batch["segment_ids"][:, text]),
        }
        for text in range(batch["tokens"].shape[1])
    ]
    loss = getattr(losses, name)(model, **options)(features, torch.zeros(B))
    loss.backward()
    (table,) = (
        parameter.grad
        for path, parameter in model.named_parameters()
        if path.endswith("word_embeddings.weight")
    )
    return loss.item(), table.numpy()


@pytest.mark.parametrize(
    ("name", "texts", "microbatches", "fields", "options"),
    [
        ("MultipleNegativesRankingLoss", 2, 1, {}, {}),
        ("MultipleNegativesRankingLoss", 4, 1, {"scale": 7.0}, {"scale": 7.0}),
        ("CachedMultipleNegativesRankingLoss", 2, 4, {}, {"mini_batch_size": 2}),
        ("CachedMultipleNegativesRankingLoss", 3, 4, {}, {"mini_batch_size": 2}),
        ("MultipleNegativesSymmetricRankingLoss", 2, 1, {"symmetric": True}, {}),
    ],
)
def test_the_loss_and_its_gradient_are_theirs(
    folder, tmp_path, name, texts, microbatches, fields, options
):
    import_model(folder, tmp_path / "run")
    run, batch = fmjax.load(tmp_path / "run"), rows(texts)
    pooling = "cls" if texts == 4 else "mean"
    embedding = TextEmbedding("first" if texts == 4 else "mean")
    objective = TextContrast(run.model, embedding, chunks=2, **fields)
    state = State(jnp.int32(0), run.params, {}, None)
    keys = example_keys(0, state.step, B)
    grads, metrics, _ = jax.jit(
        lambda state: accumulate(objective, state, batch, keys, microbatches)
    )(state)
    loss, table = theirs(folder, name, batch, pooling, **options)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    found = np.asarray(grads["tokens"]["table"])[:V]
    np.testing.assert_allclose(found, table, atol=1e-5 * np.abs(table).max())
