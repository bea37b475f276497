"""Scikit-learn's digits: real scans that are on every machine."""

import dataclasses
import functools
import io
from collections.abc import Iterator

import numpy as np
import xxhash
from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.sources.image_sources import FoundImage, image_function_source
from fmjax.data.sources.source import check_split
from fmjax.errors import UserError


@configurable("digits")
@dataclasses.dataclass(frozen=True)
class Digits:
    """The 1,797 handwritten digits, 8 × 8, that come with scikit-learn.

    They are the test set of Alpaydin and Kaynak's optical digits (UCI, 1998), of 13
    people. Validation is the tail: what other people wrote, mostly.

    Attributes:
      validation_share: of the images, from the end.
    """

    validation_share: float = 0.2

    def __post_init__(self):
        if not 0 < self.validation_share < 1:
            raise UserError(
                f"digits.validation_share is {self.validation_share}; expected 0 < "
                "share < 1."
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """`train` and `validation`."""
        return ("train", "validation")

    def class_names(self) -> tuple[str, ...]:
        """The digits themselves."""
        return tuple("0123456789")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's numbers."""
        pixels, labels = self._part(split)
        digest = xxhash.xxh3_128(b"digits")
        digest.update(pixels.tobytes())
        digest.update(labels.tobytes())
        return digest.hexdigest()

    def size(self, split: str) -> int:
        """Bytes of the pixels."""
        return self._part(split)[0].size

    def features(self) -> dict[str, str]:
        """As `seqio_source` yields them."""
        return {"image": "image", "label": "label", "name": "name"}

    def images(self, split: str) -> Iterator[FoundImage]:
        """Each as a grey PNG."""
        for number, (pixels, label) in enumerate(zip(*self._part(split))):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            yield FoundImage(f"digit {number}", file.getvalue(), int(label))

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return image_function_source(self)

    def _part(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [N, 8, 8] and labels [N]."""
        check_split("digits", split, self.splits)
        pixels, labels = _load()
        cut = round(len(labels) * (1 - self.validation_share))
        part = slice(cut) if split == "train" else slice(cut, None)
        return pixels[part], labels[part]


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"@digits() needs scikit-learn: {error}.") from error
    found = load_digits()
    # Grey values are 0 … 16.
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    return pixels, found.target.astype(np.int64)
