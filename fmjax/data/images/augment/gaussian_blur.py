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
    """A Gaussian blur, which Pillow makes of box blurs.

    Attributes:
      sigma: least and most standard deviation in pixels; SimCLR's are for 224 × 224.
      probability: of blurring.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    probability: float = 0.5

    def __post_init__(self):
        check_range("gaussian_blur.sigma", self.sigma)
        check_probability("gaussian_blur.probability", self.probability)

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        if rng.random() >= self.probability:
            return picture
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(*self.sigma)))
