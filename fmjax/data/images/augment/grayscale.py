"""Random conversion to grey."""

import dataclasses

from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import PictureChange, Rng, check_probability


@configurable("grayscale")
@dataclasses.dataclass(frozen=True)
class Grayscale(PictureChange):
    """Converts to grey: the luma (ITU-R 601) in all three channels.

    Attributes:
      probability: probability that an image is converted; the default is SimCLR's.
    """

    probability: float = 0.2

    def __post_init__(self):
        check_probability(self)

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        if rng.random() >= self.probability:
            return picture
        return picture.convert("L").convert("RGB")
