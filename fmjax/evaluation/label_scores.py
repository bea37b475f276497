"""Scores of predicted labels over a whole split: accuracy, F1, MCC, correlations.

They follow from counts, or for numbers from all values, so they do not depend on how
the split is cut into batches, nor on the number of processes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Scores = dict[str, float]


@dataclasses.dataclass
class ClassCounts:
    """Counts of predictions with one label each.

    Attributes:
      right: predictions of each class that are right, int64 [K].
      predicted: all predictions of each class, int64 [K].
      labelled: labels of each class, int64 [K].
    """

    right: Int[np.ndarray, " K"]
    predicted: Int[np.ndarray, " K"]
    labelled: Int[np.ndarray, " K"]

    @classmethod
    def of(
        cls,
        predicted: Int[np.ndarray, " N"],
        labels: Int[np.ndarray, " N"],
        classes: int,
    ) -> "ClassCounts":
        """The counts of N predictions."""
        right = predicted[predicted == labels]
        return cls(
            *(np.bincount(x, minlength=classes) for x in (right, predicted, labels))
        )

    def scores(self) -> Scores:
        """The scores of the predictions.

        Returns:
          "accuracy"; "f1_macro", the mean F1 over the classes that were predicted or
          are labels; "mcc", Matthews' correlation (Gorodkin 2004 for K classes), 0 if
          only one class was predicted or is a label; with two classes also "f1" of the
          second.
        """
        total, right = self.labelled.sum(), self.right.sum()
        f1 = _f1(self.right, self.predicted, self.labelled)
        counted = self.predicted + self.labelled > 0
        found = {"accuracy": _ratio(right, total), "f1_macro": _mean(f1[counted])}
        # Products of counts of long splits do not fit into 64 bits.
        p, t = (x.astype(float) for x in (self.predicted, self.labelled))
        n = float(total)
        covariance = float(right) * n - p @ t
        variances = (n * n - p @ p) * (n * n - t @ t)
        found["mcc"] = float(covariance / np.sqrt(variances)) if variances > 0 else 0.0
        return found | ({"f1": float(f1[1])} if len(f1) == 2 else {})


def confusion_table(
    predicted: Int[np.ndarray, " N"],
    labels: Int[np.ndarray, " N"],
    names: Sequence[str],
) -> str:
    """A table in text: a line for each label, with the numbers of its predictions."""
    size = len(names)
    matrix = np.bincount(labels * size + predicted, minlength=size * size)
    rows = [("label \\ predicted", *names)]
    rows += [
        (name, *(f"{count:,}" for count in counts))
        for name, counts in zip(names, matrix.reshape(size, size))
    ]
    first, *others = (max(map(len, column)) for column in zip(*rows))
    return "\n".join(
        "  ".join([head.ljust(first), *(c.rjust(w) for c, w in zip(cells, others))])
        for head, *cells in rows
    )


def scores_of_sets(
    predicted: Bool[np.ndarray, "N K"], labels: Bool[np.ndarray, "N K"]
) -> Scores:
    """Scores of any number of labels for each text.

    Returns:
      "accuracy", the share of texts whose labels are all right; "f1_micro", F1 over all
      labels together; "f1_macro", its mean over the classes that were predicted or are
      labels.
    """
    right = (predicted & labels).sum(0)
    predicted_of, labelled = predicted.sum(0), labels.sum(0)
    f1 = _f1(right, predicted_of, labelled)
    counted = predicted_of + labelled > 0
    micro = _f1(*(x.sum(keepdims=True) for x in (right, predicted_of, labelled)))
    return {
        "accuracy": _ratio((predicted == labels).all(1).sum(), len(labels)),
        "f1_micro": float(micro[0]),
        "f1_macro": _mean(f1[counted]),
    }


def scores_of_numbers(
    predicted: Float[np.ndarray, " N"], labels: Float[np.ndarray, " N"]
) -> Scores:
    """Scores of predicted numbers.

    Returns:
      "pearson" and "spearman", correlations of the numbers and of their ranks, NaN if
      either side is constant; "mean_absolute_error".
    """
    from scipy.stats import rankdata

    x, y = (np.asarray(values, np.float64) for values in (predicted, labels))
    return {
        "pearson": _correlation(x, y),
        "spearman": _correlation(rankdata(x), rankdata(y)),
        "mean_absolute_error": _mean(np.abs(x - y)),
    }


def _f1(right, predicted, labelled) -> Float[np.ndarray, " K"]:
    """2 · right / (predicted + labelled), 0 where there are none."""
    both = predicted + labelled
    return np.divide(2.0 * right, both, out=np.zeros(len(both)), where=both > 0)


def _correlation(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
