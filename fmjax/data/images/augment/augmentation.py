"""Augmentations: random changes of an image, drawn whenever it is read.

A new one is a file with one configurable below one of these classes, by the point
where it comes in: the choice of a region, the picture, its numbers, or the whole row.
All that is random is drawn from the generator it is given.
"""

import abc
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from fmjax.data.images.decoding import Box
from fmjax.data.text.packing import Row
from fmjax.errors import UserError

Rng = np.random.Generator


class Augmentation:
    """One of the four kinds below."""


class RegionChoice(Augmentation, abc.ABC):
    """Chooses what part of an image is read, in place of the middle."""

    @abc.abstractmethod
    def region(self, width: int, height: int, rng: Rng) -> Box:
        """The box of an image of this size that is resized to S × S."""


class PictureChange(Augmentation, abc.ABC):
    """Changes an S × S RGB picture."""

    @abc.abstractmethod
    def change(self, picture: Image.Image, rng: Rng) -> Image.Image:
        """The changed picture, RGB of the same size."""


class NumberChange(Augmentation, abc.ABC):
    """Changes normalized numbers, in which 0 is the mean colour."""

    @abc.abstractmethod
    def change(
        self, image: Float[np.ndarray, "S S 3"], rng: Rng
    ) -> Float[np.ndarray, "S S 3"]:
        """The changed numbers; it may change `image` itself."""


class Mix(Augmentation, abc.ABC):
    """Mixes an image and its label with another."""

    @abc.abstractmethod
    def mix(
        self,
        image: Float[np.ndarray, "S S 3"],
        other: Float[np.ndarray, "S S 3"],
        rng: Rng,
    ) -> tuple[Float[np.ndarray, "S S 3"], float]:
        """The mixed image, and the share of it that `image` has."""


_KINDS = (RegionChoice, PictureChange, NumberChange, Mix)


class Augmentations:
    """A sequence of augmentations, sorted by what they change.

    Where there are several mixes, each row draws one of them.
    """

    def __init__(self, parts: Sequence[Augmentation] = (), owner: str = "images"):
        """Raises a UserError unless they come in the order in which they work."""
        order = [
            next(i for i, kind in enumerate(_KINDS) if isinstance(part, kind))
            for part in parts
        ]
        if order != sorted(order) or order.count(0) > 1:
            names = ", ".join(f"@{part.gin_name}()" for part in parts)
            raise UserError(
                f"{owner}.augment is ({names}); expected at most one choice of a "
                "region, then changes of the picture, then of its numbers, then mixes."
            )
        self._by_kind = [[p for p, i in zip(parts, order) if i == k] for k in range(4)]

    @property
    def mixes(self) -> bool:
        """Whether rows have a second label."""
        return bool(self._by_kind[3])

    def image(
        self, content: bytes, preprocessing, rng: Callable[[], Rng]
    ) -> Float[np.ndarray, "S S 3"]:
        """The numbers of an encoded image, augmented but not mixed.

        Args:
          content: the encoded image.
          preprocessing: a `Preprocessing`.
          rng: gives the generator; called if anything is random.
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
        """A row of `images` and `labels` with another mixed in."""
        mixes = self._by_kind[3]
        part = mixes[int(rng.integers(len(mixes)))] if len(mixes) > 1 else mixes[0]
        image, share = part.mix(row["images"], other["images"], rng)
        return row | {
            "images": image,
            "other_labels": other["labels"],
            "label_share": np.array(share, np.float32),
        }


def check_probability(name: str, probability: float) -> None:
    """Raises a UserError unless it is one."""
    if not 0 <= probability <= 1:
        raise UserError(f"{name} is {probability}; expected 0 to 1.")


def check_range(name: str, pair: tuple[float, float], most: float = math.inf) -> None:
    """Raises a UserError unless 0 < pair[0] <= pair[1] <= most."""
    if not 0 < pair[0] <= pair[1] <= most:
        raise UserError(
            f"{name} is {pair}; expected 0 < least <= most"
            + (f" <= {most}." if math.isfinite(most) else ".")
        )
