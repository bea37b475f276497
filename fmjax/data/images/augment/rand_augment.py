"""RandAugment (Cubuk et al. 2020): N of fourteen operations, all of magnitude M."""

import dataclasses
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from fmjax.configurable import configurable
from fmjax.data.images.augment.augmentation import PictureChange, Rng
from fmjax.errors import require

_MAX_MAGNITUDE = 30  # as in the paper


@configurable("rand_augment")
@dataclasses.dataclass(frozen=True)
class RandAugment(PictureChange):
    """RandAugment: N operations drawn with replacement, all of magnitude M.

    Operations with a direction (rotation, translation, brightness, …) draw it too.

    Attributes:
      operations: N, the number of operations applied to an image.
      magnitude: M, 0 to 30; 30 is the maximum of AutoAugment's range of each operation.
      fill: grey value, 0 to 255, of pixels from outside the picture.
    """

    operations: int = 2
    magnitude: int | float = 9
    fill: int = 128

    def __post_init__(self):
        magnitude_valid = 0 <= self.magnitude <= _MAX_MAGNITUDE
        require(self, "operations", self.operations >= 1, "at least 1")
        require(self, "magnitude", magnitude_valid, f"0 to {_MAX_MAGNITUDE}")
        require(self, "fill", 0 <= self.fill <= 255, "0 to 255")

    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """See `PictureChange`."""
        level = self.magnitude / _MAX_MAGNITUDE
        names = list(OPERATIONS)
        for number in rng.integers(len(names), size=self.operations):
            sign = -1 if rng.random() < 0.5 else 1
            picture = OPERATIONS[names[number]](picture, level, sign, (self.fill,) * 3)
        return picture


Fill = tuple[int, int, int]
# (picture, level 0 to 1, sign, fill) → picture.
Operation = Callable[[Image.Image, float, int, Fill], Image.Image]


def _affine(picture: Image.Image, matrix: tuple, fill: Fill) -> Image.Image:
    """Applies a matrix (a … f): output (x, y) is input (ax + by + c, dx + ey + f)."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, fillcolor=fill
    )


def _shear_x(picture, level, sign, fill):
    return _affine(picture, (1, sign * 0.3 * level, 0, 0, 1, 0), fill)


def _shear_y(picture, level, sign, fill):
    return _affine(picture, (1, 0, 0, sign * 0.3 * level, 1, 0), fill)


def _translate_x(picture, level, sign, fill):
    shift = int(sign * level * picture.width * 150 / 331)
    return _affine(picture, (1, 0, -shift, 0, 1, 0), fill)


def _translate_y(picture, level, sign, fill):
    shift = int(sign * level * picture.height * 150 / 331)
    return _affine(picture, (1, 0, 0, 0, 1, -shift), fill)


def _rotate(picture, level, sign, fill):
    return picture.rotate(sign * 30 * level, fillcolor=fill)


def _enhance(kind) -> Operation:
    def operation(picture, level, sign, fill):
        del fill
        return kind(picture).enhance(1 + sign * 0.9 * level)

    return operation


def _posterize(picture, level, sign, fill):
    del sign, fill
    return ImageOps.posterize(picture, 8 - round(4 * level))


def _solarize(picture, level, sign, fill):
    del sign, fill
    return ImageOps.solarize(picture, 255 * (1 - level))


def _plain(function) -> Operation:
    def operation(picture, level, sign, fill):
        del level, sign, fill
        return function(picture)

    return operation


OPERATIONS: dict[str, Operation] = {
    "identity": _plain(lambda picture: picture),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _enhance(ImageEnhance.Brightness),
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _plain(ImageOps.autocontrast),
    "equalize": _plain(ImageOps.equalize),
}
