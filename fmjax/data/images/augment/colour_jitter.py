"""Random brightness, contrast, saturation and hue (Howard 2013; SimCLR, 2020)."""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import PictureChange, Rng, check_probability
from fmjax.errors import UserError


@configurable("colour_jitter")
@dataclasses.dataclass(frozen=True)
class ColourJitter(PictureChange):
    """Changes of colour, in random order, each by a uniform factor.

    A strength s gives factors from max(0, 1 - s) to 1 + s; SimCLR's are 0.8 for
    brightness, contrast and saturation and 0.2 for hue, with probability 0.8.

    Attributes:
      brightness: strength; a factor of 0 is black.
      contrast: strength; a factor of 0 is the mean grey.
      saturation: strength; a factor of 0 is grey.
      hue: the most that it is turned either way, in turns of the circle of colours.
      probability: of changing anything.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    def __post_init__(self):
        check_probability("colour_jitter.probability", self.probability)
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"colour_jitter.{name} is {getattr(self, name)}; expected at least "
                    "0."
                )
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"colour_jitter.hue is {self.hue}; expected 0 to 0.5.")

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
    """Turns every colour's hue by a share of the circle."""
    hue, saturation, value = picture.convert("HSV").split()
    shifted = np.asarray(hue) + np.array(turns * 255).astype(np.int8).astype(np.uint8)
    turned = Image.fromarray(shifted)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
