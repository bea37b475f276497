"""Preprocessing of images without augmentation: resize, crop, normalize."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float
from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.images.decoding import Box, read_picture, take_region
from fmjax.errors import UserError, require, suggest

# An image of this size takes 0.8 GB as float32.
_MAX_SIZE = 8192

RESAMPLING = {kind.name.lower(): kind for kind in Image.Resampling}


@configurable("preprocessing")
@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocessing: from an encoded image to the normalized values a model reads.

    Attributes:
      size: S, side of the S × S result in pixels.
      fit: 'crop' resizes the shorter side and takes the centre; 'squash' resizes both
        sides to the same length and ignores the aspect ratio.
      shorter_side: pixels to which 'crop' resizes the shorter side, and 'squash' both
        sides, before the centre crop; S if None.
      resampling: Pillow's filter: 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming' or
        'nearest'.
      mean: mean of red, green and blue, each from 0 to 1, which is subtracted.
      std: standard deviation of red, green and blue, by which values are divided.
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
        """The normalized values of an encoded image, float32 [S, S, 3].

        Raises:
          fmjax.data.records.BadRecord: the image cannot be decoded.
        """
        return self.normalize(self.read(content))

    def of_picture(self, picture: Image.Image) -> Float[np.ndarray, "S S 3"]:
        """The normalized values of an open image, float32 [S, S, 3]."""
        resampling = RESAMPLING[self.resampling]
        return self.normalize(take_region(picture, self.region, self.size, resampling))

    def read(self, content: bytes, region=None) -> Image.Image:
        """The S × S picture of an encoded image.

        Args:
          content: the encoded image.
          region: maps (width, height) to the box to read; `self.region` if None.
        """
        region = region or self.region
        return read_picture(content, region, self.size, RESAMPLING[self.resampling])

    def region(self, width: int, height: int) -> Box:
        """The box (in pixels) of an image of this size that is read."""
        # Resizes and crops in one step, with the rounding of transformers' two steps.
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
        """(x / 255 - mean) / std of a picture, float32 [S, S, 3]."""
        scale, shift = self._line
        values = np.asarray(picture).reshape(picture.height, -1)
        numbers = np.multiply(values, scale, dtype=np.float32)
        numbers += shift
        return numbers.reshape(picture.height, picture.width, 3)

    @property
    def pixel_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Normalized values of black and of white, each of red, green and blue."""
        black, white = (
            tuple((grey - mean) / std for mean, std in zip(self.mean, self.std))
            for grey in (0, 1)
        )
        return black, white

    @functools.cached_property
    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift, float32 [3 S]: NumPy is slow along an axis of length 3."""
        std = np.array(self.std, np.float64)
        scale, shift = 1 / (255 * std), -np.array(self.mean) / std
        return tuple(np.tile(v, self.size).astype(np.float32) for v in (scale, shift))

    def shown(self, images: Float[np.ndarray, "*any 3"]) -> np.ndarray:
        """Normalized values as uint8 of the same shape, for display."""
        values = (images * np.float32(self.std) + np.float32(self.mean)) * 255
        return np.clip(values.round(), 0, 255).astype(np.uint8)


def check_preprocessing(settings) -> None:
    """Checks the fields of a `Preprocessing` or `ImageData`.

    Raises:
      UserError: a field has an invalid value.
    """
    owner, size, short = settings.gin_name, settings.size, settings.shorter_side
    require(settings, "size", 1 <= size <= _MAX_SIZE, f"1 to {_MAX_SIZE}")
    for name, known in (("fit", ("crop", "squash")), ("resampling", RESAMPLING)):
        found = getattr(settings, name)
        if found not in known:
            raise UserError(
                f"{owner}.{name} = {found!r}: expected one of {', '.join(known)}."
                + suggest(found, known)
            )
    require(
        settings,
        "shorter_side",
        short is None or size <= short <= _MAX_SIZE,
        f"None, or {owner}.size = {size} to {_MAX_SIZE}",
    )
    finite = all(map(math.isfinite, settings.mean))
    require(settings, "mean", finite, "finite numbers")
    positive = all(0 < value < math.inf for value in settings.std)
    require(settings, "std", positive, "positive numbers")
