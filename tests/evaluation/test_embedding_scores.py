"""Measures of vectors of texts against their definitions; similarity of pairs."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
from tiny_objectives import OBJECTIVES

from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.errors import UserError
from fmjax.evaluation import embedding_scores
from fmjax.evaluation.embedding_scores import alignment, recall_at_1, uniformity
from fmjax.evaluation.embeddings import EmbeddingScores, similarity_scores
from fmjax.objectives.causal_lm import CausalLM
from fmjax.training.experiment import Experiment


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_alignment_and_uniformity_are_wang_and_isolas(monkeypatch):
    monkeypatch.setattr(embedding_scores, "_ROWS", 7)
    x, y = unit(np.random.default_rng(0), 2, 40, 5)
    np.testing.assert_allclose(
        alignment(x, y), np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(x, y)])
    )
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)]
    expected = np.log(np.mean(np.exp(-2 * np.square(distances))))
    np.testing.assert_allclose(uniformity(x), expected, rtol=1e-10)
    # In one dimension more than there are rows, all at right angles: exp(-2 · 2).
    np.testing.assert_allclose(uniformity(np.eye(6)), -4, rtol=1e-12)


def test_recall_counts_equal_texts_as_right(monkeypatch):
    monkeypatch.setattr(embedding_scores, "_ROWS", 7)
    rng = np.random.default_rng(1)
    x, y = unit(rng, 2, 50, 4)
    texts = np.arange(50)
    nearest = (x @ y.T).argmax(1)
    assert recall_at_1(x, y, texts) == (nearest == texts).mean() < 0.2
    assert recall_at_1(x, x, texts) == 1
    # Rows that miss alone, each with a twin that it finds instead.
    twice, whole = np.concatenate([y, y]), np.concatenate([x, x])
    assert recall_at_1(whole, twice, np.tile(texts, 2)) == (nearest == texts).mean()


class Cosines:
    """A run whose vectors have given angles."""

    def embed(self, texts, **how):
        assert how == {"normalize": True, "truncate": True}
        angles = np.array([float(text.split()[1]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_similarity_is_spearmans_correlation_with_the_numbers(tmp_path):
    rng = np.random.default_rng(0)
    angles, scores = rng.uniform(0, 3, (2, 30)), rng.uniform(0, 5, 30)
    file = tmp_path / "sts.jsonl"
    file.write_text(
        "".join(
            json.dumps({"a": f"at {x}", "b": f"at {y}", "score": score}) + "\n"
            for x, y, score in zip(*angles, scores)
        )
    )
    source = LabelledRecords(
        str(file),
        text="a",
        second_text="b",
        label="score",
        numbers=True,
        validation_fraction=0.0,
    )
    found = similarity_scores(Cosines(), source)
    expected = scipy.stats.spearmanr(np.cos(angles[0] - angles[1]), scores).statistic
    np.testing.assert_allclose(found["similarity_spearman"], expected, rtol=1e-6)


def test_objectives_and_sources_without_pairs_of_texts_are_refused(tmp_path):
    contrast = Experiment(OBJECTIVES["text_contrast"].objective)
    causal = Experiment(OBJECTIVES["causal_lm"].objective)
    assert isinstance(causal.objective, CausalLM)
    with pytest.raises(UserError, match="@causal_lm"):
        EmbeddingScores().check(causal)
    EmbeddingScores().check(contrast)
    labelled = LabelledRecords(str(tmp_path), text="a", second_text="b")
    with pytest.raises(UserError, match=r"labelled_records\.numbers = False"):
        EmbeddingScores(similarity=labelled).check(contrast)
