"""Random horizontal flips."""

import dataclasses

from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import PictureChange, Rng, check_probability


@configurable("flip")
@dataclasses.dataclass(frozen=True)
class Flip(PictureChange):
    """Flips the picture left to right.

    Attributes:
      probability: probability that an image is flipped.
    """

    probability: float = 0.5

    def __post_init__(self):
        check_probability(self)

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        if rng.random() >= self.probability:
            return picture
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
