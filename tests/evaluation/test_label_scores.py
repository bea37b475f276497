"""Scores of labels against scikit-learn and SciPy."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from fmjax.evaluation.label_scores import (
    ClassCounts,
    confusion_table,
    scores_of_numbers,
    scores_of_sets,
)


def drawn(classes, seed, size=200, right=0.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    guesses = rng.integers(0, classes, size)
    return np.where(rng.random(size) < right, labels, guesses), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classes_are_scored_as_by_scikit_learn(classes):
    predicted, labels = drawn(classes, classes)
    found = ClassCounts.of(predicted, labels, classes).scores()
    metrics = sklearn.metrics
    expected = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "mcc": metrics.matthews_corrcoef(labels, predicted),
    }
    if classes == 2:
        expected["f1"] = metrics.f1_score(labels, predicted)
    assert found == pytest.approx(expected, rel=1e-12)


def test_classes_that_do_not_occur_do_not_count():
    labels, predicted = np.array([0, 0, 2, 2, 2]), np.array([0, 3, 2, 2, 0])
    found = ClassCounts.of(predicted, labels, 6).scores()
    metrics = sklearn.metrics
    macro = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert found["f1_macro"] == pytest.approx(macro, rel=1e-12)
    mcc = metrics.matthews_corrcoef(labels, predicted)
    assert found["mcc"] == pytest.approx(mcc, rel=1e-12)


def test_a_single_prediction_for_all_has_no_correlation():
    predicted, labels = np.zeros(9, int), np.arange(9) % 2
    assert ClassCounts.of(predicted, labels, 2).scores()["mcc"] == 0
    assert sklearn.metrics.matthews_corrcoef(labels, predicted) == 0


def test_counts_of_long_splits_do_not_overflow():
    counts = ClassCounts(*(np.array([10**10, 2 * 10**10]) for _ in range(3)))
    assert counts.scores()["mcc"] == pytest.approx(1)


def test_sets_of_labels_are_scored_as_by_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.random((50, 5)) < 0.4
    predicted = labels ^ (rng.random((50, 5)) < 0.2)
    labels[:, 4] = predicted[:, 4] = False
    found = scores_of_sets(predicted, labels)
    metrics = sklearn.metrics
    used = slice(4)
    macro = metrics.f1_score(labels[:, used], predicted[:, used], average="macro")
    expected = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "f1_micro": metrics.f1_score(labels, predicted, average="micro"),
        "f1_macro": macro,
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_numbers_are_scored_as_by_scipy():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, 80) / 2  # with ties
    predicted = (labels + rng.normal(0, 1, 80)).round(1)
    found = scores_of_numbers(predicted, labels)
    expected = {
        "pearson": scipy.stats.pearsonr(predicted, labels).statistic,
        "spearman": scipy.stats.spearmanr(predicted, labels).statistic,
        "mean_absolute_error": sklearn.metrics.mean_absolute_error(labels, predicted),
    }
    assert found == pytest.approx(expected, rel=1e-12)
    constant = scores_of_numbers(np.ones(80), labels)
    assert np.isnan(constant["pearson"])
    assert np.isnan(constant["spearman"])


def test_the_table_has_the_numbers_of_each_label_and_prediction():
    predicted, labels = drawn(3, 5, size=3000)
    table = confusion_table(predicted, labels, ("no", "perhaps", "yes"))
    head, *lines = table.splitlines()
    assert head.split() == ["label", "\\", "predicted", "no", "perhaps", "yes"]
    found = [[int(n.replace(",", "")) for n in line.split()[1:]] for line in lines]
    np.testing.assert_array_equal(
        found, sklearn.metrics.confusion_matrix(labels, predicted)
    )
