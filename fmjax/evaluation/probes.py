"""Probes of an encoder's features: linear probe and k nearest neighbours."""

import math

import numpy as np
from jaxtyping import Float, Int

from fmjax.errors import UserError
from fmjax.evaluation.image_features import Features, ImageRun

# Inverse strengths of the L2 penalty, of which the best on held-out images is used.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_NEIGHBOURS, _TEMPERATURE = 20, 0.07


def linear_probe(images: ImageRun) -> dict[str, float]:
    """Linear probe: accuracy of logistic regression on the train split's features.

    The penalty is chosen on a held-out tenth of the train split (at least one image for
    each class); then the probe is fitted on the whole train split.

    Returns:
      "linear_probe": accuracy on the validation split; "linear_probe_held_out": on the
      held-out images; "linear_probe_strength": the chosen inverse penalty.

    Raises:
      UserError: the data has no labels, only one class, or a class with only one image.
    """
    train, validation = (_labelled(images, split) for split in ("train", "validation"))
    classes, counts = np.unique(train.labels, return_counts=True)
    rarest = images.data.class_names()[classes[counts.argmin()]]
    if len(classes) < 2:
        raise UserError(
            f"All images of the train split are of the class {rarest!r}; a linear "
            "probe needs two or more classes."
        )
    if counts.min() < 2:
        raise UserError(
            f"The train split has only one image of the class {rarest!r}; a linear "
            "probe needs two or more of each class, to fit it and to choose its "
            "penalty."
        )
    return fit_linear(
        train.vectors, train.labels, validation.vectors, validation.labels
    )


def knn(images: ImageRun) -> dict[str, float]:
    """k-NN: accuracy of the votes of 20 neighbours, weighted by exp(cosine / 0.07).

    Wu et al. 2018, "Unsupervised feature learning via non-parametric instance
    discrimination", section 3.4, with DINO's 20 neighbours.

    Returns:
      "knn": accuracy on the validation split.

    Raises:
      UserError: the data has no labels.
    """
    from sklearn.neighbors import KNeighborsClassifier

    train, validation = (_labelled(images, split) for split in ("train", "validation"))
    voters = KNeighborsClassifier(
        min(_NEIGHBOURS, len(train.labels)),
        metric="cosine",
        weights=lambda distances: np.exp((1 - distances) / _TEMPERATURE),
    )
    voters.fit(train.vectors, train.labels)
    return {"knn": float(voters.score(validation.vectors, validation.labels))}


def fit_linear(
    train: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    test: Float[np.ndarray, "M D"],
    test_labels: Int[np.ndarray, " M"],
) -> dict[str, float]:
    """`linear_probe` for any features, such as raw pixels; see there."""
    # Imported here, since every command imports this module.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Stratification needs at least one image of each class.
    size = max(math.ceil(0.1 * len(labels)), len(np.unique(labels)))
    fitted, held_out, fitted_labels, held_out_labels = train_test_split(
        train, labels, test_size=size, random_state=0, stratify=labels
    )

    def fit(x, y, strength):
        probe = LogisticRegression(C=strength, max_iter=1000)
        return make_pipeline(StandardScaler(), probe).fit(x, y)

    scores = {
        strength: fit(fitted, fitted_labels, strength).score(held_out, held_out_labels)
        for strength in _STRENGTHS
    }
    best = max(scores, key=scores.get)
    return {
        "linear_probe": float(fit(train, labels, best).score(test, test_labels)),
        "linear_probe_held_out": float(scores[best]),
        "linear_probe_strength": best,
    }


def _labelled(images: ImageRun, split: str) -> Features:
    if not images.data.class_names():
        raise UserError(
            "Probes need labels, but the images of experiment.data have none; expected "
            "a source with labels."
        )
    return images.features(split)
