"""Random brightness, contrast, saturation and hue (Howard 2013; SimCLR, 2020)."""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import PictureChange, Rng, check_probability
from fmjax.errors import require


@configurable("colour_jitter")
@dataclasses.dataclass(frozen=True)
class ColourJitter(PictureChange):
    """Colour jitter: random changes of colour, applied in random order.

    A strength s gives factors drawn uniformly from max(0, 1 - s) to 1 + s. SimCLR uses
    0.8 for brightness, contrast and saturation and 0.2 for hue, with probability 0.8.

    Attributes:
      brightness: strength; a factor of 0 gives black.
      contrast: strength; a factor of 0 gives the mean grey.
      saturation: strength; a factor of 0 gives a grey picture.
      hue: maximum rotation of the hue in either direction, 0 to 0.5 of a full circle.
      probability: probability that an image is changed.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    def __post_init__(self):
        check_probability(self)
        for name in ("brightness", "contrast", "saturation"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "hue", 0 <= self.hue <= 0.5, "0 to 0.5")

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        if rng.random() >= self.probability:
            return picture
        for name in rng.permutation(("brightness", "contrast", "saturation", "hue")):
            strength = getattr(self, name)
            if not strength:
                continue
            if name == "hue":
                picture = turn_hue(picture, rng.uniform(-strength, strength))
                continue
            factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
            picture = _ENHANCERS[name](picture).enhance(factor)
        return picture


def turn_hue(picture: Image.Image, turns: float) -> Image.Image:
    """Rotates the hue of every pixel by `turns` full circles, -0.5 to 0.5."""
    hue, saturation, value = picture.convert("HSV").split()
    shifted = np.asarray(hue) + np.array(turns * 255).astype(np.int8).astype(np.uint8)
    turned = Image.fromarray(shifted)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
