"""Mirror images."""

import dataclasses

from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import PictureChange, Rng, check_probability


@configurable("flip")
@dataclasses.dataclass(frozen=True)
class Flip(PictureChange):
    """Mirrors the picture left to right.

    Attributes:
      probability: of doing so.
    """

    probability: float = 0.5

    def __post_init__(self):
        check_probability("flip.probability", self.probability)

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        if rng.random() >= self.probability:
            return picture
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
