"""What a text task needs of a source of documents, and its form as a seqio source."""

from collections.abc import Iterator
from typing import Protocol

from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.errors import UserError

# Tokenizing takes some 40 bytes of memory per byte of text, so documents have a limit:
# files are cut into documents below it, and a longer example of TFDS or of a user's own
# task counts as broken.
DOCUMENT_BYTES = 1 << 22

Document = tuple[str, bytes]  # A name for messages, and the text in UTF-8.


class Source(Protocol):
    """A source of text documents in fixed splits.

    Only `seqio_source` needs TensorFlow (and, for `tfds`, `documents`).
    """

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", and "validation" where there is one."""

    def fingerprint(self, split: str) -> str:
        """Digest that changes whenever the documents of the split do."""

    def documents(self, split: str) -> Iterator[Document]:
        """Documents in a fixed order."""

    def size(self, split: str) -> int | None:
        """Bytes of text, roughly, for a progress bar; None where unknown."""

    def features(self) -> dict[str, str]:
        """Names for seqio's `rekey`: {"targets": the text, ("name": the name)}."""

    def seqio_source(self):
        """The same documents as a seqio.DataSource."""


def function_source(source: Source):
    """A seqio.FunctionDataSource over a source's `documents`."""
    seqio = import_seqio()
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del shuffle_files, seed  # The order is fixed; seqio shuffles later.
        text = tf.TensorSpec((), tf.string)
        return tf.data.Dataset.from_generator(
            lambda: (
                {"name": name, "text": text} for name, text in source.documents(split)
            ),
            output_signature={"name": text, "text": text},
        )

    return seqio.FunctionDataSource(dataset, splits=source.splits)


def check_split(source: str, split: str, splits: tuple[str, ...]) -> None:
    """Raises UserError if a source has no such split."""
    if split not in splits:
        raise UserError(f"{source} has no split {split!r}; it has {splits}.")
