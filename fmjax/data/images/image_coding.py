"""Units of images: encoded files with their labels and captions."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fmjax.data.images.image_examples import ImageExample, found_images
from fmjax.data.sources.division import FoundImage
from fmjax.data.sources.examples import Skipped
from fmjax.data.tokenizers.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class ImageCoding:
    """Checks images and tokenizes their captions; see `UnitCoding`.

    Its arrays are
      images: content of all files, uint8 [bytes].
      sizes: bytes of each of them, int64 [images].
      labels: int64 [images]; only with labels.
      tokens: of all captions, int32 [N]; only with captions.
      lengths: tokens of each caption, int64 [images]; only with captions.

    Attributes:
      classes: number of classes; 0 without labels.
      captions: whether captions are tokenized.
    """

    classes: int
    captions: bool

    def encoded(
        self,
        examples: Iterable[FoundImage],
        name: str,
        tokenizer: Tokenizer | None,
        skipped: Skipped,
    ) -> Iterator[ImageExample]:
        """Yields the valid images; see `found_images`."""
        own = tokenizer if self.captions else None
        return found_images(examples, name, self.classes, own, skipped)

    def pack(
        self, examples: Sequence[ImageExample], tokenizer: Tokenizer | None
    ) -> dict[str, np.ndarray]:
        """The arrays that hold the images."""
        del tokenizer
        content = b"".join(example.image for example in examples)
        arrays = {
            "images": np.frombuffer(content, np.uint8),
            "sizes": np.array([len(example.image) for example in examples], np.int64),
        }
        if self.classes:
            labels = [example.label for example in examples]
            arrays["labels"] = np.array(labels, np.int64)
        if self.captions:
            captions = [example.tokens for example in examples]
            arrays["tokens"] = np.concatenate(captions).astype(np.int32)
            arrays["lengths"] = np.array([len(each) for each in captions], np.int64)
        return arrays

    def unpack(self, arrays: dict[str, np.ndarray]) -> Iterator[ImageExample]:
        """Yields the images."""
        count = len(arrays["sizes"])
        images = np.split(arrays["images"], np.cumsum(arrays["sizes"])[:-1])
        labels, captions = [None] * count, [None] * count
        if self.classes:
            labels = arrays["labels"].tolist()
        if self.captions:
            captions = np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])
        for image, label, tokens in zip(images, labels, captions, strict=True):
            yield ImageExample(image.tobytes(), label, tokens)
