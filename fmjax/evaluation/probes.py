"""How much of the classes an encoder's features tell: linear probe and k-NN."""

import math

import numpy as np
from jaxtyping import Float, Int

from fmjax.errors import UserError
from fmjax.evaluation.image_features import Features, ImageRun

# Inverse strengths of the probe's penalty, of which held-out images choose.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_NEIGHBOURS, _TEMPERATURE = 20, 0.07


def linear_probe(images: ImageRun) -> dict[str, float]:
    """Accuracy of logistic regression from the train split's features.

    Its penalty is chosen on a tenth of the train split, or as many images as there are
    classes where those are more, and it is then fitted on all.

    Returns:
      "linear_probe": accuracy on the validation split; "linear_probe_held_out": on what
      was held out; "linear_probe_strength": the inverse penalty taken.

    Raises:
      UserError: the data has no labels, images of one class alone, or a single one of
        any.
    """
    train, validation = (_labelled(images, split) for split in ("train", "validation"))
    classes, counts = np.unique(train.labels, return_counts=True)
    rarest = images.data.class_names()[classes[counts.argmin()]]
    if len(classes) < 2:
        raise UserError(
            f"All images of the train split are of the class {rarest!r}; a linear "
            "probe tells classes apart, expected two or more."
        )
    if counts.min() < 2:
        raise UserError(
            f"The train split has one image of the class {rarest!r}; expected two or "
            "more of each, for a linear probe is fitted on some and chosen by others."
        )
    return fit_linear(
        train.vectors, train.labels, validation.vectors, validation.labels
    )


def knn(images: ImageRun) -> dict[str, float]:
    """Accuracy of the 20 nearest neighbours' votes, weighed by exp(cosine / 0.07).

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
    """What `linear_probe` gives, of any features, such as raw pixels."""
    # Every command imports this module for its configurables, and few need sklearn.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Stratifying needs one image of each class at the least.
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
            "Probes need classes, and the images of experiment.data have none; "
            "expected a source with labels."
        )
    return images.features(split)
