"""Parallel text files: line n of one is the translation of line n of the other."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.text_files import (
    DOCUMENT_BYTES,
    Document,
    check_split,
    digest_files,
)
from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.errors import UserError


@configurable("pair_files")
@dataclasses.dataclass(frozen=True)
class PairFiles:
    """UTF-8 text files of which equal lines belong together: FOLDER/SPLIT.LANGUAGE.

    Attributes:
      folder: holds the files.
      inputs: what is read: the ending of its files, a line an example.
      targets: what is to be written: the ending of its files, with as many lines.
      train: the training split's files before their ending.
      validation: the validation split's.
    """

    folder: str = path()
    inputs: str = "en"
    targets: str = "de"
    train: str = "train"
    validation: str = "val"

    @property
    def splits(self) -> tuple[str, ...]:
        """Both."""
        return ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's two files."""
        names = [digest_files([file]) for file in self._files(split)]
        return xxhash.xxh3_128_hexdigest(" ".join(["pair_files", *names]).encode())

    def documents(self, split: str) -> Iterator[Document]:
        """Every line of both files: what a vocabulary is trained on."""
        for file in self._files(split):
            with open(file, "rb") as content:
                for number, text in enumerate(_lines(content), 1):
                    if text and len(text) <= DOCUMENT_BYTES:
                        yield f"{file.name}, line {number}", text

    def pairs(self, split: str) -> Iterator[tuple[str, bytes, bytes]]:
        """(a name, input, target) of every line; raises UserError where one lacks.

        What is longer than a document may be is cut, but not so far that it could pass.
        """
        inputs, targets = self._files(split)
        with open(inputs, "rb") as left, open(targets, "rb") as right:
            lines = itertools.zip_longest(_lines(left), _lines(right))
            for number, (text, other) in enumerate(lines, 1):
                if other is None:
                    raise UserError(f"{targets} has fewer lines than {inputs}.")
                if text is None:
                    raise UserError(f"{targets} has more lines than {inputs}.")
                yield f"{inputs.name}, line {number}", text, other

    def size(self, split: str) -> int:
        """Bytes of the target texts."""
        return self._files(split)[1].stat().st_size

    def features(self) -> dict[str, str]:
        """As `seqio_source` yields them."""
        return {"inputs": "inputs", "targets": "targets", "name": "name"}

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        seqio = import_seqio()
        import tensorflow as tf

        def dataset(split, shuffle_files, seed=None):
            del shuffle_files, seed  # Pairs have one order; seqio shuffles after us.
            text = tf.TensorSpec((), tf.string)
            names = ("name", "inputs", "targets")
            return tf.data.Dataset.from_generator(
                lambda: (dict(zip(names, pair)) for pair in self.pairs(split)),
                output_signature=dict.fromkeys(names, text),
            )

        return seqio.FunctionDataSource(dataset, splits=self.splits)

    def _files(self, split: str) -> tuple[Path, Path]:
        check_split("pair_files", split, self.splits)
        folder = Path(self.folder).expanduser().absolute()
        found = []
        for side in ("inputs", "targets"):
            file = folder / f"{getattr(self, split)}.{getattr(self, side)}"
            if not file.is_file():
                raise UserError(
                    f"{file}: no such file; expected one by pair_files.folder, "
                    f"pair_files.{split} and pair_files.{side}."
                )
            found.append(file)
        return found[0], found[1]


def _lines(content: BinaryIO) -> Iterator[bytes]:
    """Lines without blanks around them; of gigantic ones the beginning, as it is."""
    while line := content.readline(DOCUMENT_BYTES + 1):
        rest = line
        while len(rest) > DOCUMENT_BYTES and not rest.endswith(b"\n"):
            rest = content.readline(DOCUMENT_BYTES + 1)
        yield line if len(line) > DOCUMENT_BYTES else line.strip()
