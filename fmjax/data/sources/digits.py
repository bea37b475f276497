"""The source `digits`: the handwritten digits that scikit-learn includes."""

import dataclasses
import functools
import io
from collections.abc import Iterator

import numpy as np
import xxhash
from PIL import Image

from fmjax.configurable import configurable
from fmjax.data.sources.division import FoundImage
from fmjax.data.sources.image_sources import image_function_source
from fmjax.data.sources.source import check_split
from fmjax.errors import UserError, require


@configurable("digits")
@dataclasses.dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits of 8 × 8 pixels, included in scikit-learn.

    They are the test set of Alpaydin and Kaynak's optical digits (UCI, 1998), written
    by 13 people. The validation split is the end of the set, mostly of other writers.

    Attributes:
      validation_fraction: share of the images, from the end, that is held out.
    """

    validation_fraction: float = 0.2

    def __post_init__(self):
        valid = 0 < self.validation_fraction < 1
        require(self, "validation_fraction", valid, "0 < fraction < 1")

    @property
    def splits(self) -> tuple[str, ...]:
        """`train` and `validation`."""
        return ("train", "validation")

    def class_names(self) -> tuple[str, ...]:
        """The digits "0" to "9"."""
        return tuple("0123456789")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's pixels and labels."""
        pixels, labels = self._part(split)
        digest = xxhash.xxh3_128(b"digits")
        digest.update(pixels.tobytes())
        digest.update(labels.tobytes())
        return digest.hexdigest()

    def size(self, split: str) -> int:
        """Bytes of the pixels."""
        return self._part(split)[0].size

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        return {"image": "image", "label": "label", "name": "name"}

    def images(self, split: str) -> Iterator[FoundImage]:
        """The split's images in order, each as a grey PNG."""
        for number, (pixels, label) in enumerate(zip(*self._part(split))):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            yield FoundImage(f"digit {number}", file.getvalue(), int(label))

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return image_function_source(self)

    def _part(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 [N, 8, 8] and labels int64 [N] of a split."""
        check_split("digits", split, self.splits)
        pixels, labels = _load()
        cut = round(len(labels) * (1 - self.validation_fraction))
        part = slice(cut) if split == "train" else slice(cut, None)
        return pixels[part], labels[part]


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"@digits() needs scikit-learn: {error}.") from error
    found = load_digits()
    # Grey values are 0 to 16.
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    return pixels, found.target.astype(np.int64)
