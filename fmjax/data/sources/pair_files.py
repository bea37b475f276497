"""The source `pair_files`: parallel text files, where line n translates line n."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.source import DOCUMENT_BYTES, Document, check_split
from fmjax.data.sources.text_reader import OpenText, is_utf8, open_text, scan_text
from fmjax.errors import UserError


@configurable("pair_files")
@dataclasses.dataclass(frozen=True)
class PairFiles:
    """Parallel text files FOLDER/SPLIT.SUFFIX: line n of both files is one example.

    Attributes:
      folder: the folder of the files.
      inputs: suffix of the files with the encoder's texts.
      targets: suffix of the files with the decoder's texts, with as many lines.
      train: name of the training split's files, without suffix.
      validation: name of the validation split's files, without suffix; None for no
        validation split.
    """

    folder: str = path()
    inputs: str = "en"
    targets: str = "de"
    train: str = "train"
    validation: str | None = "val"

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` if it is bound."""
        return ("train",) if self.validation is None else ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's two files."""
        files = self._files(split)
        if split == "train" and self.validation is not None:
            self._check_apart(files)
        digests = [digest_files([file], _scanned) for file in files]
        key = " ".join(["pair_files", *digests])
        if not all(scan_text(file).is_plain for file in files):
            key += " normalized"  # Earlier versions did not decode or strip them.
        return xxhash.xxh3_128_hexdigest(key.encode())

    def documents(self, split: str) -> Iterator[Document]:
        """Every line of both files, for training a tokenizer."""
        for file in self._files(split):
            with open_text(file) as content:
                for number, text, fault in _lines(content):
                    if text and len(text) <= DOCUMENT_BYTES:
                        yield f"{file.name}, line {number}{fault}", text

    def pairs(self, split: str) -> Iterator[tuple[str, bytes, bytes]]:
        """Yields (name, input, target) for every line.

        A text of more than 4 MiB is truncated, but to a length that is still refused.

        Raises:
          UserError: the files have different numbers of lines.
        """
        inputs, targets = self._files(split)
        with open_text(inputs) as left, open_text(targets) as right:
            for one, other in itertools.zip_longest(_lines(left), _lines(right)):
                if other is None:
                    raise UserError(f"{targets} has fewer lines than {inputs}.")
                if one is None:
                    raise UserError(f"{targets} has more lines than {inputs}.")
                number, text, fault = one
                _, target, target_fault = other
                name = f"{inputs.name}, line {number}{fault}"
                if target_fault and not fault:
                    name = f"{targets.name}, line {number}{target_fault}"
                yield name, text, target

    def size(self, split: str) -> int:
        """Bytes of the target texts."""
        return self._files(split)[1].stat().st_size

    def features(self) -> dict[str, str]:
        """Names of the features, as `seqio_source` yields them."""
        return {"inputs": "inputs", "targets": "targets", "name": "name"}

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        seqio = import_seqio()
        import tensorflow as tf

        def dataset(split, shuffle_files, seed=None):
            del shuffle_files, seed  # The order is fixed; seqio shuffles later.
            text = tf.TensorSpec((), tf.string)
            names = ("name", "inputs", "targets")
            return tf.data.Dataset.from_generator(
                lambda: (dict(zip(names, pair)) for pair in self.pairs(split)),
                output_signature=dict.fromkeys(names, text),
            )

        return seqio.FunctionDataSource(dataset, splits=self.splits)

    def _check_apart(self, files: tuple[Path, Path]) -> None:
        """Raises a UserError if the training and validation files are the same."""
        other = self._files("validation")
        if list(map(_scanned, files)) == list(map(_scanned, other)):
            raise UserError(
                f"pair_files.train = {self.train!r} and pair_files.validation = "
                f"{self.validation!r} have the same lines, so there is nothing to "
                "train on. Bind pair_files.validation to other files, or to None."
            )

    def _files(self, split: str) -> tuple[Path, Path]:
        check_split("pair_files", split, self.splits)
        folder = Path(self.folder).expanduser().absolute()
        found = []
        for side in ("inputs", "targets"):
            file = folder / f"{getattr(self, split)}.{getattr(self, side)}"
            if not file.is_file():
                raise UserError(
                    f"{file}: no such file; the name is made from pair_files.folder, "
                    f"pair_files.{split} and pair_files.{side}."
                )
            found.append(file)
        return found[0], found[1]


def _scanned(file: Path) -> str:
    return scan_text(file).digest


def _lines(content: OpenText) -> Iterator[tuple[int, bytes, str]]:
    """Yields (number, stripped text, note on the first byte that is not UTF-8).

    Of a line of more than DOCUMENT_BYTES only the beginning is read.
    """
    for number, (start, stop) in enumerate(content.lines(), 1):
        text, fault = content.read(start, min(stop, start + DOCUMENT_BYTES + 1)), ""
        if len(text) <= DOCUMENT_BYTES:
            text = text.strip()
            fault = "" if is_utf8(text) else f" ({content.bad_byte(start, stop)})"
        yield number, text, fault
