"""Image rows: the record that a cache stores, and the row made from it."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fmjax.data.images.augment.augmentation import Augmentations
from fmjax.data.images.captions import Captions
from fmjax.data.images.image_examples import ImageExample
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.records import BadRecord, Record, Row

# Draws of an image to mix in, in case of corrupt ones, before a row is left unmixed.
_TRIES = 3


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """The layout of images: a record holds an encoded image, its label and caption.

    Attributes:
      preprocessing: resizes, crops and normalizes.
      augmentations: random changes each time an image is read; empty for evaluation.
      views: 1, or 2 for two augmented views of an image.
      classes: number of labels; 0 if images have none.
      captions: makes rows of tokens; None if images have no captions.
    """

    preprocessing: Preprocessing
    augmentations: Augmentations
    views: int
    classes: int
    captions: Captions | None

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        return "images"

    def cache_key(self) -> dict:
        """The settings that the records depend on: name and number of classes."""
        return {"name": self.name, "classes": self.classes}

    @property
    def has_text_bytes(self) -> bool:
        """False: rows have no `targets`, so bits per byte are not computed."""
        return False

    def records(self, examples: Iterable[ImageExample]) -> Iterator[Record]:
        """Yields the record of each example."""
        for example in examples:
            record = {"image": np.frombuffer(example.image, np.uint8)}
            if example.label is not None:
                record["label"] = np.array([example.label], np.int32)
            if example.tokens is not None:
                record["tokens"] = example.tokens
            yield record

    def row(
        self,
        record: Record,
        rng: Callable[[], np.random.Generator],
        other: Callable[[np.random.Generator], Record] | None = None,
    ) -> Row:
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: returns the row's generator; called only if something is random.
          other: returns the record of an image to mix in, drawn with a generator.

        Returns:
          `images` float32 [S, S, 3], normalized; or, with two views, `views` float32
          [2, S, S, 3]. `weights` float32 []. With labels, `labels` int32 []; if images
          are mixed, also `other_labels` int32 [] and `label_share` float32 []. With
          captions, `tokens` int32 [T] and `padding_mask` bool [T].

        Raises:
          BadRecord: the image cannot be decoded.
        """
        if "image" not in record:
            return self._zeros()
        rng = _Once(rng)
        row = self._image(record, rng)
        row["weights"] = np.array(1, np.float32)
        if self.augmentations.mixes:
            row = self._mixed(row, rng(), other)
        if self.captions is not None:
            # Last, so that drawing a caption does not change the augmentation.
            row |= self.captions.row(self._caption(record, rng))
        return row

    def check(self, record: Record) -> None:
        """Raises ValueError or KeyError if the record does not fit the layout."""
        if record["image"].ndim != 1 or not record["image"].size:
            raise ValueError("no image in a record")
        if self.classes and not 0 <= record["label"][0] < self.classes:
            raise ValueError(f"label {record['label']} of {self.classes} classes")
        if self.captions is not None and not self.captions.templated:
            record["tokens"]  # KeyError if there are none.

    def filled(self, record: Record) -> tuple[int, int]:
        """(used, all) positions of a row: captions have padding, images have none."""
        if self.captions is None or self.captions.templated:
            return 1, 1
        length = self.captions.length
        return min(len(record["tokens"]), length), length

    def _image(self, record: Record, rng) -> Row:
        content = record["image"].tobytes()
        made = [
            self.augmentations.image(content, self.preprocessing, rng)
            for _ in range(self.views)
        ]
        row = {"images": made[0]} if self.views == 1 else {"views": np.stack(made)}
        if self.classes:
            row["labels"] = np.array(record["label"][0], np.int32)
        return row

    def _mixed(self, row: Row, rng: np.random.Generator, other) -> Row:
        for _ in range(_TRIES):
            try:
                drawn = self._image(other(rng), lambda: rng)
            except (BadRecord, KeyError):
                continue  # A corrupt record is counted when its own row is read.
            return self.augmentations.mixed(row, drawn, rng)
        share = np.array(1, np.float32)
        return row | {"other_labels": row["labels"], "label_share": share}

    def _caption(self, record: Record, rng) -> np.ndarray:
        if self.captions.templated:
            return self.captions.of_class(int(record["label"][0]), rng)
        return record["tokens"]

    def _zeros(self) -> Row:
        size = self.preprocessing.size
        shape = (size, size, 3)
        row = {"images": np.zeros(shape, np.float32)}
        if self.views > 1:
            row = {"views": np.zeros((self.views, *shape), np.float32)}
        row["weights"] = np.zeros((), np.float32)
        if self.classes:
            row["labels"] = np.zeros((), np.int32)
        if self.augmentations.mixes:
            row["other_labels"] = np.zeros((), np.int32)
            row["label_share"] = np.zeros((), np.float32)
        if self.captions is not None:
            row |= self.captions.row(np.zeros(0, np.int32))
        return row


class _Once:
    """Returns the same generator each time; `rng` would create a new one."""

    def __init__(self, rng: Callable[[], np.random.Generator]):
        self._rng, self._generator = rng, None

    def __call__(self) -> np.random.Generator:
        if self._generator is None:
            self._generator = self._rng()
        return self._generator
