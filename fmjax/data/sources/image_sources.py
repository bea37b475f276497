"""The interface of image sources, and their form as a seqio source."""

from collections.abc import Iterator
from typing import Protocol

from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.source import Document


class ImageSource(Protocol):
    """A source of images with labels, captions or both."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits: "train", and "validation" if there is one."""

    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, …; empty if the images have no labels."""

    def fingerprint(self, split: str) -> str:
        """Digest of the images, labels and captions of a split."""

    def size(self, split: str) -> int | None:
        """Approximate bytes of the images, for a progress bar; None if unknown."""

    def features(self) -> dict[str, str]:
        """Maps "image" and, if present, "label", "targets" and "name" to features."""

    def seqio_source(self):
        """The images as a seqio.DataSource."""

    def texts(self, split: str) -> Iterator[Document]:
        """All captions of a split; needed only if the source has `targets`."""


def image_function_source(source):
    """A seqio.FunctionDataSource over a source's `images(split)` of `FoundImage`s."""
    seqio = import_seqio()
    import tensorflow as tf

    types = {"image": tf.string, "label": tf.int64, "targets": tf.string}
    types |= {"name": tf.string, "record_fault": tf.string}
    fields = {"image": "image", "label": "label", "targets": "caption", "name": "name"}
    fields |= {"record_fault": "fault"}
    used = [name for name in types if name in source.features()]

    def dataset(split, shuffle_files, seed=None):
        del shuffle_files, seed  # The order is fixed; seqio shuffles later.
        return tf.data.Dataset.from_generator(
            lambda: (
                {name: getattr(image, fields[name]) for name in used}
                for image in source.images(split)
            ),
            output_signature={name: tf.TensorSpec((), types[name]) for name in used},
        )

    return seqio.FunctionDataSource(dataset, splits=source.splits)
