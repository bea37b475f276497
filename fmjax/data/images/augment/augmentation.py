"""Augmentations: random changes of an image, drawn anew each time it is read.

To add one, write a file with a configurable that derives from one of four classes,
named after what they change: the region that is read (`RegionChoice`), the picture
(`PictureChange`), the normalized values (`NumberChange`) or the whole row (`Mix`).
Draw all random numbers from the given generator, so that runs are reproducible.
"""

import abc
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from fmjax.data.images.decoding import Box
from fmjax.data.records import Row
from fmjax.errors import UserError, require

Rng = np.random.Generator


class Augmentation:
    """Base class of the four kinds of augmentations below."""


class RegionChoice(Augmentation, abc.ABC):
    """Chooses the region of an image that is read, instead of the centre crop."""

    @abc.abstractmethod
    def region(self, width: int, height: int, rng: Rng) -> Box:
        """The box (in pixels) of an image of this size that is resized to S × S."""


class PictureChange(Augmentation, abc.ABC):
    """Changes an S × S RGB picture."""

    @abc.abstractmethod
    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """The changed picture, also S × S RGB."""


class NumberChange(Augmentation, abc.ABC):
    """Changes the normalized values of an image, in which 0 is the mean colour."""

    @abc.abstractmethod
    def change(
        self, image: Float[np.ndarray, "S S 3"], rng: Rng
    ) -> Float[np.ndarray, "S S 3"]:
        """The changed image, float32 [S, S, 3]; `image` may be changed in place."""


class Mix(Augmentation, abc.ABC):
    """Mixes an image and its label with another image and its label."""

    @abc.abstractmethod
    def mix(
        self,
        image: Float[np.ndarray, "S S 3"],
        other: Float[np.ndarray, "S S 3"],
        rng: Rng,
    ) -> tuple[Float[np.ndarray, "S S 3"], float]:
        """The mixed image and the weight (0 to 1) of `image`'s label."""


_KINDS = (RegionChoice, PictureChange, NumberChange, Mix)


class Augmentations:
    """A pipeline of augmentations, grouped by kind.

    If there are several mixes, each row uses one of them, drawn at random.
    """

    def __init__(self, parts: Sequence[Augmentation] = (), owner: str = "images"):
        """Checks the order of the augmentations.

        Args:
          parts: the augmentations, in the order of the four kinds.
          owner: gin name of the configurable that lists them, for error messages.

        Raises:
          UserError: the order is wrong, or there is more than one RegionChoice.
        """
        order = [
            next(i for i, kind in enumerate(_KINDS) if isinstance(part, kind))
            for part in parts
        ]
        if order != sorted(order) or order.count(0) > 1:
            names = ", ".join(f"@{part.gin_name}()" for part in parts)
            raise UserError(
                f"{owner}.augment = ({names}): expected at most one choice of a "
                "region, then changes of the picture, then of its normalized values, "
                "then mixes."
            )
        self._by_kind = [[p for p, i in zip(parts, order) if i == k] for k in range(4)]

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that rows have a second label."""
        return bool(self._by_kind[3])

    def image(
        self, content: bytes, preprocessing, rng: Callable[[], Rng]
    ) -> Float[np.ndarray, "S S 3"]:
        """The normalized values of an encoded image, augmented but not mixed.

        Args:
          content: the encoded image.
          preprocessing: a `Preprocessing`.
          rng: returns the generator; called only if there are augmentations.

        Returns:
          float32 [S, S, 3].
        """
        regions, pictures, numbers, _ = self._by_kind
        if not (regions or pictures or numbers):
            return preprocessing(content)
        generator = rng()
        region = None
        if regions:

            def region(width: int, height: int) -> Box:
                return regions[0].region(width, height, generator)

        picture = preprocessing.read(content, region)
        for part in pictures:
            picture = part.change(picture, generator)
        image = preprocessing.normalize(picture)
        for part in numbers:
            image = part.change(image, generator)
        return image

    def mixed(self, row: Row, other: Row, rng: Rng) -> Row:
        """A row mixed with another.

        Args:
          row: `images` float32 [S, S, 3] and `labels` int32 [].
          other: the same of the other image.
          rng: the generator.

        Returns:
          `row` with mixed `images`, and with `other_labels` int32 [] and `label_share`
          float32 [], the weight of `labels`.
        """
        mixes = self._by_kind[3]
        part = mixes[int(rng.integers(len(mixes)))] if len(mixes) > 1 else mixes[0]
        image, share = part.mix(row["images"], other["images"], rng)
        return row | {
            "images": image,
            "other_labels": other["labels"],
            "label_share": np.array(share, np.float32),
        }


def check_probability(augmentation: Augmentation) -> None:
    """Raises a UserError unless the field `probability` is from 0 to 1."""
    valid = 0 <= augmentation.probability <= 1
    require(augmentation, "probability", valid, "0 to 1")


def check_range(
    augmentation: Augmentation, field: str, maximum: float = math.inf
) -> None:
    """Raises a UserError unless a field is (a, b) with 0 < a <= b <= maximum."""
    low, high = getattr(augmentation, field)
    limit = f" <= {maximum}" if math.isfinite(maximum) else ""
    valid = 0 < low <= high <= maximum
    require(
        augmentation,
        field,
        valid,
        f"(minimum, maximum) with 0 < minimum <= maximum{limit}",
    )
