"""Random erasing (Zhong et al. 2020, algorithm 1)."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import (
    NumberChange,
    Rng,
    check_probability,
    check_range,
)

# Draws of a rectangle before nothing is erased.
_TRIES = 10


@configurable("random_erasing")
@dataclasses.dataclass(frozen=True)
class RandomErasing(NumberChange):
    """Erases a random rectangle.

    If ten draws do not fit into the image, nothing is erased.

    Attributes:
      probability: probability that an image is changed.
      scale: minimum and maximum share of the image's area.
      ratio: minimum and maximum height / width of the rectangle.
      noise: whether to fill with standard normal noise instead of 0, the mean colour.
    """

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    noise: bool = False

    def __post_init__(self):
        check_probability(self)
        check_range(self, "scale", 1.0)
        check_range(self, "ratio")

    def change(
        self, image: Float[np.ndarray, "S S 3"], rng: Rng
    ) -> Float[np.ndarray, "S S 3"]:
        """See `NumberChange`."""
        if rng.random() >= self.probability:
            return image
        height, width, _ = image.shape
        log_ratio = [math.log(ratio) for ratio in self.ratio]
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*log_ratio))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                top = int(rng.integers(height - h + 1))
                left = int(rng.integers(width - w + 1))
                part = image[top : top + h, left : left + w]
                part[...] = rng.standard_normal(part.shape) if self.noise else 0
                break
        return image
