"""Image examples of a seqio task; corrupt ones are counted and left out."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from fmjax.data.images.decoding import check_picture
from fmjax.data.records import BadRecord
from fmjax.data.sources.examples import Skipped, label_of, read_examples
from fmjax.data.sources.source import DOCUMENT_BYTES
from fmjax.data.sources.text_reader import is_utf8
from fmjax.errors import UserError


@dataclasses.dataclass
class ImageExample:
    """An encoded image with its label and caption.

    Attributes:
      image: content of the file.
      label: its class, from 0; None without labels.
      tokens: int32 [N], its caption with EOS if the vocabulary has one; None without
        captions.
    """

    image: bytes
    label: int | None
    tokens: np.ndarray | None

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the caption."""
        return 0 if self.tokens is None else len(self.tokens)

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return len(self.image)

    @property
    def content(self) -> "ImageExample":
        """The input of a layout: the example itself."""
        return self


def image_examples(
    dataset, name: str, classes: int, vocab_size: int, skipped: Skipped
) -> Iterator[ImageExample]:
    """Yields the examples of a seqio task, without corrupt ones and empty captions.

    A source may tell itself that an example is corrupt, by the feature `record_fault`.

    Args:
      dataset: the task's tf.data.Dataset, with features `image` and, if there are
        labels or captions, `label` and `targets`.
      name: its name, for messages.
      classes: number of classes; labels must be below. 0 without labels.
      vocab_size: V; ids must be below. 0 without captions.
      skipped: counts the examples that are left out.

    Raises:
      UserError: a feature is missing, or as in `read_examples`.
    """
    for number, found in read_examples(dataset, name, skipped):
        if fault := found.get("record_fault"):
            where = label_of(found, f"image {number}")
            skipped.add(f"{name}: {where} {fault.decode()}")
            continue
        for feature in ("image", "label") if classes else ("image",):
            if feature not in found:
                raise UserError(
                    f"{name} has examples without {feature!r}; they have "
                    f"{sorted(found)}."
                )
        tokens = found.get("targets") if vocab_size else None
        example = ImageExample(
            image=found["image"],
            label=int(found["label"]) if classes else None,
            tokens=None if tokens is None else np.asarray(tokens, np.int32),
        )
        reason = _fault(example, classes, vocab_size)
        text = found.get("targets_pretokenized")
        empty = False
        if reason is None and isinstance(text, bytes):
            empty = not text.strip()
            if not is_utf8(text):
                reason = "has a caption that is not UTF-8"
            elif len(text) > DOCUMENT_BYTES:
                reason = f"has a caption of more than {DOCUMENT_BYTES:,} bytes"
            elif empty:
                reason = "has an empty caption"
        if reason is None:
            yield example
        else:
            label = label_of(found, f"image {number}")
            skipped.add(f"{name}: {label} {reason}", empty=empty)


def _fault(example: ImageExample, classes: int, vocab_size: int) -> str | None:
    if not example.image:
        return "holds no image"
    if classes and not 0 <= example.label < classes:
        return f"has label {example.label} of {classes} classes"
    tokens = example.tokens
    in_range = tokens is None or ((tokens >= 0) & (tokens < vocab_size)).all()
    if not in_range:
        return "has a caption with ids outside the vocabulary"
    try:
        check_picture(example.image)
    except BadRecord as error:
        return str(error)
    return None
