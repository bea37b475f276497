"""Preprocessing of images that are not augmented: resize, crop, normalize."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float
from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.images.decoding import Box, read_picture, take_region
from fmjax.errors import UserError, suggest

# An image of this size is 0.8 GB of numbers.
_MOST_SIZE = 8192

RESAMPLING = {kind.name.lower(): kind for kind in Image.Resampling}


@configurable("preprocessing")
@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From an encoded image to the normalized numbers that a model reads.

    Attributes:
      size: S, of the S × S result.
      fit: 'crop' resizes the shorter side and takes the middle; 'squash' resizes both
        sides alike, whatever the aspect ratio.
      shorter_side: what 'crop' resizes the shorter side to, and 'squash' both, before
        the middle is taken; None means S.
      resampling: Pillow's filter: 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming' or
        'nearest'.
      mean: of red, green, blue between 0 and 1; it is taken off.
      std: what is divided by.
    """

    size: int = 224
    fit: str = "crop"
    shorter_side: int | None = None
    resampling: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        check_preprocessing(self)

    def __call__(self, content: bytes) -> Float[np.ndarray, "S S 3"]:
        """The numbers of an encoded image.

        Raises:
          fmjax.data.text.packing.BadRecord: it cannot be decoded.
        """
        return self.normalize(self.read(content))

    def of_picture(self, picture: Image.Image) -> Float[np.ndarray, "S S 3"]:
        """The numbers of an image that was opened already."""
        resampling = RESAMPLING[self.resampling]
        return self.normalize(take_region(picture, self.region, self.size, resampling))

    def read(self, content: bytes, region=None) -> Image.Image:
        """The S × S picture of an encoded image, out of `region` if one is given."""
        region = region or self.region
        return read_picture(content, region, self.size, RESAMPLING[self.resampling])

    def region(self, width: int, height: int) -> Box:
        """The region of an image that is read where nothing is augmented."""
        # Resizing and cropping in one, rounded as transformers does in two steps.
        short = long = self.shorter_side or self.size
        if self.fit == "crop":
            shorter, longer = sorted((width, height))
            long = int(short * longer / shorter)
        wide, high = (short, long) if width <= height else (long, short)
        left, top = ((edge - self.size) // 2 for edge in (wide, high))
        across, down = width / wide, height / high
        right, bottom = left + self.size, top + self.size
        return left * across, top * down, right * across, bottom * down

    def normalize(self, picture: Image.Image) -> Float[np.ndarray, "S S 3"]:
        """(x / 255 - mean) / std."""
        scale, shift = self._line
        values = np.asarray(picture).reshape(picture.height, -1)
        numbers = np.multiply(values, scale, dtype=np.float32)
        numbers += shift
        return numbers.reshape(picture.height, picture.width, 3)

    @functools.cached_property
    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of a line of S pixels: NumPy is slow along an axis of 3."""
        std = np.array(self.std, np.float64)
        scale, shift = 1 / (255 * std), -np.array(self.mean) / std
        return tuple(np.tile(v, self.size).astype(np.float32) for v in (scale, shift))

    def shown(self, images: Float[np.ndarray, "*any 3"]) -> np.ndarray:
        """Normalized numbers as uint8 to look at."""
        values = (images * np.float32(self.std) + np.float32(self.mean)) * 255
        return np.clip(values.round(), 0, 255).astype(np.uint8)


def check_preprocessing(settings) -> None:
    """Raises a UserError where a configurable with these fields has impossible ones."""
    owner, size, short = settings.gin_name, settings.size, settings.shorter_side
    if not 1 <= size <= _MOST_SIZE:
        raise UserError(f"{owner}.size is {size}; expected 1 to {_MOST_SIZE}.")
    for name, known in (("fit", ("crop", "squash")), ("resampling", RESAMPLING)):
        found = getattr(settings, name)
        if found not in known:
            raise UserError(
                f"{owner}.{name} is {found!r}; expected one of {', '.join(known)}."
                + suggest(found, known)
            )
    if short is not None and not size <= short <= _MOST_SIZE:
        raise UserError(
            f"{owner}.shorter_side is {short}; expected None, or {owner}.size = {size} "
            f"to {_MOST_SIZE}."
        )
    if not all(map(math.isfinite, settings.mean)):
        raise UserError(f"{owner}.mean is {settings.mean}; expected finite numbers.")
    if not all(0 < value < math.inf for value in settings.std):
        raise UserError(f"{owner}.std is {settings.std}; expected positive numbers.")
