"""What an image task needs of the place its images come from."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from fmjax.data.sources.source import Document
from fmjax.data.tasks.seqio_import import import_seqio


class FoundImage(NamedTuple):
    """An image of a source.

    Attributes:
      name: for messages.
      image: bytes of its file.
      label: its class, if it has one.
      caption: its text in UTF-8, if it has one.
    """

    name: str
    image: bytes
    label: int | None = None
    caption: bytes | None = None


class ImageSource(Protocol):
    """Images with labels or captions or both."""

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", and "validation" where there is one."""

    def class_names(self) -> tuple[str, ...]:
        """What labels 0, 1, … are called; none where images have no labels."""

    def fingerprint(self, split: str) -> str:
        """Changes whenever the images, labels or captions of the split do."""

    def size(self, split: str) -> int | None:
        """Bytes of the images, roughly, for a progress bar; None where unknown."""

    def features(self) -> dict[str, str]:
        """Names for seqio's `rekey`: of "image", ("label"), ("targets"), ("name")."""

    def seqio_source(self):
        """A seqio.DataSource."""

    def texts(self, split: str) -> Iterator[Document]:
        """All captions, of a source that has `targets`."""


def image_function_source(source):
    """A seqio.FunctionDataSource over a source's `images(split)` of `FoundImage`s."""
    seqio = import_seqio()
    import tensorflow as tf

    types = {"image": tf.string, "label": tf.int64, "targets": tf.string}
    types |= {"name": tf.string}
    fields = {"image": "image", "label": "label", "targets": "caption", "name": "name"}
    used = [name for name in types if name in source.features()]

    def dataset(split, shuffle_files, seed=None):
        del shuffle_files, seed  # Images have one order; seqio shuffles after us.
        return tf.data.Dataset.from_generator(
            lambda: (
                {name: getattr(image, fields[name]) for name in used}
                for image in source.images(split)
            ),
            output_signature={name: tf.TensorSpec((), types[name]) for name in used},
        )

    return seqio.FunctionDataSource(dataset, splits=source.splits)
