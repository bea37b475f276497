"""Random blur (SimCLR, Chen et al. 2020, appendix A)."""

import dataclasses

from PIL import Image, ImageFilter

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import (
    PictureChange,
    Rng,
    check_probability,
    check_range,
)


@configurable("gaussian_blur")
@dataclasses.dataclass(frozen=True)
class GaussianBlur(PictureChange):
    """Gaussian blur with a random standard deviation; Pillow approximates it.

    Attributes:
      sigma: minimum and maximum standard deviation in pixels; SimCLR uses the default
        for 224 × 224 pixels.
      probability: probability that an image is blurred.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    probability: float = 0.5

    def __post_init__(self):
        check_range(self, "sigma")
        check_probability(self)

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        if rng.random() >= self.probability:
            return picture
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(*self.sigma)))
