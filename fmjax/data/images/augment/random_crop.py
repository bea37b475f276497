"""Random crops: of random area and aspect ratio (Szegedy et al. 2015), and padded."""

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
from fmjax.errors import require

# Draws of a region before the centre is taken.
_TRIES = 10


@configurable("random_resized_crop")
@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(RegionChoice):
    """A region of random area and aspect ratio, resized to S × S.

    The area is uniform and the aspect ratio log-uniform. If ten draws do not fit into
    the image, the largest central region within the range of ratios is taken.

    Attributes:
      scale: minimum and maximum share of the image's area.
      ratio: minimum and maximum aspect ratio, width / height.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        check_range(self, "scale", 1.0)
        check_range(self, "ratio")

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
    """A random crop of S × S pixels from the picture padded with black (CIFAR).

    Attributes:
      pixels: padding on every side, so the maximum shift in each direction.
    """

    pixels: int = 4

    def __post_init__(self):
        require(self, "pixels", self.pixels >= 1, "at least 1")

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        left, top = rng.integers(-self.pixels, self.pixels + 1, size=2).tolist()
        return picture.crop((left, top, left + picture.width, top + picture.height))
