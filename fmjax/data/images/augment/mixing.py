"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): mixes of two labelled images.

Every row draws its own mixing weight and its own second image.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import Mix, Rng, check_probability
from fmjax.errors import require


@configurable("mixup")
@dataclasses.dataclass(frozen=True)
class Mixup(Mix):
    """Mixup: share · image + (1 - share) · other, share drawn from Beta(alpha, alpha).

    Attributes:
      alpha: parameter of the beta distribution; with small values most images are
        changed little.
      probability: probability that an image is mixed.
    """

    alpha: float = 0.2
    probability: float = 1.0

    def __post_init__(self):
        _check(self)

    def mix(
        self,
        image: Float[np.ndarray, "S S 3"],
        other: Float[np.ndarray, "S S 3"],
        rng: Rng,
    ) -> tuple[Float[np.ndarray, "S S 3"], float]:
        """See `Mix`."""
        if rng.random() >= self.probability:
            return image, 1.0
        share = np.float32(rng.beta(self.alpha, self.alpha))
        return share * image + (1 - share) * other, float(share)


@configurable("cutmix")
@dataclasses.dataclass(frozen=True)
class CutMix(Mix):
    """CutMix: a rectangle of the image is replaced by the same one of another image.

    The kept share of the area is drawn from Beta(alpha, alpha). The rectangle's centre
    is uniform over the image, so the rectangle may be clipped; the weight of the label
    is computed from the clipped area.

    Attributes:
      alpha: parameter of the beta distribution; 1 makes all areas equally likely.
      probability: probability that an image is mixed.
    """

    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self):
        _check(self)

    def mix(
        self,
        image: Float[np.ndarray, "S S 3"],
        other: Float[np.ndarray, "S S 3"],
        rng: Rng,
    ) -> tuple[Float[np.ndarray, "S S 3"], float]:
        """See `Mix`."""
        if rng.random() >= self.probability:
            return image, 1.0
        size = len(image)
        half = size * np.sqrt(1 - rng.beta(self.alpha, self.alpha)) / 2
        y, x = rng.integers(size, size=2)
        top, left = (max(int(at - half), 0) for at in (y, x))
        bottom, right = (min(int(at + half), size) for at in (y, x))
        mixed = image.copy()
        mixed[top:bottom, left:right] = other[top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / size**2


def _check(mix: Mixup | CutMix) -> None:
    check_probability(mix)
    require(mix, "alpha", mix.alpha > 0, "more than 0")
