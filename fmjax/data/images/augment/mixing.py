"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): two images and their labels.

Each row draws its own share and its own other image.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import Mix, Rng, check_probability
from fmjax.errors import UserError


@configurable("mixup")
@dataclasses.dataclass(frozen=True)
class Mixup(Mix):
    """share · image + (1 - share) · other, the share from Beta(alpha, alpha).

    Attributes:
      alpha: small ones leave most images almost alone.
      probability: of mixing.
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
    """A rectangle of the other image, of an area from Beta(alpha, alpha).

    Its centre is anywhere, so that it may stick out; the share counts what is seen.

    Attributes:
      alpha: 1 makes all areas equally likely.
      probability: of mixing.
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
    check_probability(f"{mix.gin_name}.probability", mix.probability)
    if mix.alpha <= 0:
        raise UserError(f"{mix.gin_name}.alpha is {mix.alpha}; expected more than 0.")
