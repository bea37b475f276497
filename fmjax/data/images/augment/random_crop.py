"""Random regions of an image (Szegedy et al. 2015), and shifts of a small one."""

import dataclasses
import math

from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import (
    PictureChange,
    RegionChoice,
    Rng,
    check_range,
)
from fmjax.data.images.decoding import Box
from fmjax.errors import UserError

# Draws of a region before one takes the middle.
_TRIES = 10


@configurable("random_resized_crop")
@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(RegionChoice):
    """A region of random area and aspect ratio, resized to the whole picture.

    The area is uniform, the ratio uniform in its logarithm; where ten draws do not fit
    into the image, the largest middle part within the ratios is taken.

    Attributes:
      scale: least and most share of the image's area.
      ratio: least and most width over height.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        name = "random_resized_crop"
        check_range(f"{name}.scale", self.scale, 1.0)
        check_range(f"{name}.ratio", self.ratio)

    def region(self, width: int, height: int, rng: Rng) -> Box:
        """See `RegionChoice`."""
        log_ratio = [math.log(ratio) for ratio in self.ratio]
        for _ in range(_TRIES):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w + 1))
                top = int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        least, most = self.ratio
        w = min(width, max(round(height * most), 1))
        h = min(height, max(round(width / least), 1))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@configurable("padded_crop")
@dataclasses.dataclass(frozen=True)
class PaddedCrop(PictureChange):
    """A shift by up to `pixels` along both axes, black where nothing was (CIFAR).

    Attributes:
      pixels: the most in each direction.
    """

    pixels: int = 4

    def __post_init__(self):
        if self.pixels < 1:
            raise UserError(f"padded_crop.pixels is {self.pixels}; expected at least 1")

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        left, top = rng.integers(-self.pixels, self.pixels + 1, size=2).tolist()
        return picture.crop((left, top, left + picture.width, top + picture.height))
