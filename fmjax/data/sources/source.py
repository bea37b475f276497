"""The interface of text sources, and their form as a seqio source."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from fmjax.data.seqio_import import import_seqio
from fmjax.errors import UserError

# Maximum size of a document, since tokenizing takes about 40 bytes of memory per byte
# of text. Files are cut into documents of at most this size; a longer example of TFDS
# or of a user's task counts as corrupt.
DOCUMENT_BYTES = 1 << 22

Document = tuple[str, bytes]  # (name for messages, text in UTF-8)


class Source(Protocol):
    """A source of text documents with fixed splits.

    Only `seqio_source`, and `documents` of `tfds`, need TensorFlow.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits: "train", and "validation" if there is one."""

    def fingerprint(self, split: str) -> str:
        """Digest of the documents of a split."""

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, in a fixed order."""

    def size(self, split: str) -> int | None:
        """Approximate bytes of text, for a progress bar; None if unknown."""

    def features(self) -> dict[str, str]:
        """Maps "targets" and, if present, "name" to features of `seqio_source`."""

    def seqio_source(self):
        """The same documents as a seqio.DataSource."""


def function_source(source: Source):
    """A seqio.FunctionDataSource over a source's `documents`."""
    return generated_source(source.splits, ("name", "text"), source.documents)


def generated_source(
    splits: tuple[str, ...],
    names: tuple[str, ...],
    examples: Callable[[str], Iterable[tuple[str | bytes, ...]]],
):
    """A seqio.FunctionDataSource of examples of texts.

    Args:
      splits: names of the splits.
      names: names of the features.
      examples: yields the features of every example of a split, in a fixed order.
    """
    seqio = import_seqio()
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del shuffle_files, seed  # The order is fixed; seqio shuffles later.
        return tf.data.Dataset.from_generator(
            lambda: (dict(zip(names, example)) for example in examples(split)),
            output_signature=dict.fromkeys(names, tf.TensorSpec((), tf.string)),
        )

    return seqio.FunctionDataSource(dataset, splits=splits)


def check_split(source: str, split: str, splits: tuple[str, ...]) -> None:
    """Raises a UserError if the source has no such split."""
    if split not in splits:
        raise UserError(f"{source} has no split {split!r}; it has {splits}.")
