"""Image examples of a source or seqio task; corrupt ones are counted and left out."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from fmjax.data.images.decoding import check_picture
from fmjax.data.records import BadRecord
from fmjax.data.sources.division import FoundImage
from fmjax.data.sources.examples import Skipped, label_of, read_examples
from fmjax.data.sources.source import DOCUMENT_BYTES
from fmjax.data.sources.text_reader import is_utf8
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

_EMPTY = "has an empty caption"
_OUTSIDE = "has a caption with ids outside the vocabulary"


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
        if reason is None and isinstance(text, bytes):
            reason = _caption_fault(text)
        if reason is None:
            yield example
        else:
            label = label_of(found, f"image {number}")
            skipped.add(f"{name}: {label} {reason}", empty=reason == _EMPTY)


def found_images(
    images: Iterable[FoundImage],
    name: str,
    classes: int,
    tokenizer: Tokenizer | None,
    skipped: Skipped,
) -> Iterator[ImageExample]:
    """Yields what `image_examples` yields of an `image_task`, without TensorFlow.

    Args:
      images: images of a source.
      name: name of the task and split, for messages.
      classes: number of classes; labels must be below. 0 without labels.
      tokenizer: of the captions, to which its EOS is appended; None if they are not
        used.
      skipped: counts the images that are left out.
    """
    for found in images:
        skipped.total += 1
        if found.fault:
            skipped.add(f"{name}: {found.name} {found.fault}")
            continue
        tokens, caption_fault = None, None
        if tokenizer is not None:
            tokens, caption_fault = _tokenized(found.caption or b"", tokenizer)
        label = found.label if classes else None
        example = ImageExample(found.image, label, tokens)
        vocab_size = 0 if tokenizer is None else tokenizer.vocab_size
        reason = _fault(example, classes, vocab_size) or caption_fault
        if reason is None:
            yield example
        else:
            skipped.add(f"{name}: {found.name} {reason}", empty=reason == _EMPTY)


def _tokenized(caption: bytes, tokenizer: Tokenizer) -> tuple[np.ndarray, str | None]:
    """Ids of a caption with EOS int32 [N], and what is wrong with it, or None."""
    if fault := _caption_fault(caption):
        return np.zeros(0, np.int32), fault
    try:
        ids = list(tokenizer.encode(caption.decode()))
    except UserError:  # of a character that the vocabulary lacks
        return np.zeros(0, np.int32), _OUTSIDE
    ids += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return np.array(ids, np.int32), None


def _caption_fault(text: bytes) -> str | None:
    if not is_utf8(text):
        return "has a caption that is not UTF-8"
    if len(text) > DOCUMENT_BYTES:
        return f"has a caption of more than {DOCUMENT_BYTES:,} bytes"
    return None if text.strip() else _EMPTY


def _fault(example: ImageExample, classes: int, vocab_size: int) -> str | None:
    if not example.image:
        return "holds no image"
    if classes and not 0 <= example.label < classes:
        return f"has label {example.label} of {classes} classes"
    tokens = example.tokens
    in_range = tokens is None or ((tokens >= 0) & (tokens < vocab_size)).all()
    if not in_range:
        return _OUTSIDE
    try:
        check_picture(example.image)
    except BadRecord as error:
        return str(error)
    return None
