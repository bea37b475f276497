"""The source `pair_files`: parallel text files, where line n translates line n."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.source import (
    DOCUMENT_BYTES,
    Document,
    check_split,
    generated_source,
)
from fmjax.data.sources.text_reader import OpenText, is_utf8, open_text, scan_text
from fmjax.errors import UserError
from fmjax.say_once import say_once
from fmjax.storage.paths import refuse_scheme


@configurable("pair_files")
@dataclasses.dataclass(frozen=True)
class PairFiles:
    """Parallel text files FOLDER/SPLIT.SUFFIX: line n of both files is one example.

    Pairs of the training split that are also in the validation split are excluded from
    training.

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
        """Digest of all lines of the split's two files, also of excluded pairs.

        A tokenizer is trained on all lines, so that it does not depend on the
        validation split.

        Raises:
          UserError: all training pairs are in the validation split.
        """
        files = self._files(split)
        if split == "train":
            self._shared()
        digests = [digest_files([file], _scanned) for file in files]
        key = " ".join(["pair_files", *digests])
        if not all(scan_text(file).is_plain for file in files):
            key += " normalized"  # Earlier versions did not decode or strip them.
        return xxhash.xxh3_128_hexdigest(key.encode())

    def excluded(self) -> str:
        """Digest of the pairs that are excluded from training; "" if there are none.

        Says how many they are.
        """
        shared = self._shared()
        if not shared.hashes:
            return ""
        say_once(
            f"{shared.count} of the {shared.total} pairs of pair_files.train = "
            f"{self.train!r} are also in pair_files.validation = {self.validation!r}; "
            "they are excluded from the train split"
        )
        return xxhash.xxh3_128_hexdigest(repr(sorted(shared.hashes)).encode())

    def documents(self, split: str) -> Iterator[Document]:
        """Every line of both files, for training a tokenizer."""
        for file in self._files(split):
            with open_text(file) as content:
                for number, text, fault in _lines(content):
                    if text and len(text) <= DOCUMENT_BYTES:
                        yield f"{file.name}, line {number}{fault}", text

    def pairs(self, split: str) -> Iterator[tuple[str, bytes, bytes]]:
        """Yields (name, input, target) for every line that is not excluded.

        A text of more than 4 MiB is truncated, but to a length that is still refused.

        Raises:
          UserError: the files have different numbers of lines.
        """
        inputs, targets = self._files(split)
        excluded = self._shared().hashes if split == "train" else frozenset()
        with open_text(inputs) as left, open_text(targets) as right:
            for one, other in itertools.zip_longest(_lines(left), _lines(right)):
                if other is None:
                    raise UserError(f"{targets} has fewer lines than {inputs}.")
                if one is None:
                    raise UserError(f"{targets} has more lines than {inputs}.")
                number, text, fault = one
                _, target, target_fault = other
                if excluded and _hash(text, target) in excluded:
                    continue
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
        names = ("name", "inputs", "targets")
        return generated_source(self.splits, names, self.pairs)

    def _shared(self) -> "_SharedPairs":
        """The training pairs that are also in the validation split.

        Raises:
          UserError: all training pairs are.
        """
        if self.validation is None:
            return _SharedPairs(frozenset(), 0, 0)
        files = (*self._files("train"), *self._files("validation"))
        shared = _shared_pairs(files, tuple(map(_scanned, files)))
        if shared.count == shared.total > 0:
            raise UserError(
                f"pair_files.train = {self.train!r}: all of these pairs are also in "
                f"pair_files.validation = {self.validation!r}, so there is nothing to "
                "train on. Bind pair_files.validation to other files, or to None."
            )
        return shared

    def _files(self, split: str) -> tuple[Path, Path]:
        check_split("pair_files", split, self.splits)
        refuse_scheme(self.folder, "pair_files.folder")
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


class _SharedPairs(NamedTuple):
    """Training pairs that are also in the validation split.

    Attributes:
      hashes: 64-bit hashes of the pairs.
      count: number of training pairs that have one of these hashes.
      total: number of training pairs.
    """

    hashes: frozenset[int]
    count: int
    total: int


@functools.lru_cache(maxsize=8)
def _shared_pairs(files: tuple[Path, ...], digests: tuple[str, ...]) -> _SharedPairs:
    """Pairs of (inputs, targets) that are also in (inputs, targets) of validation.

    Memory grows with the validation split alone.
    """
    del digests  # only a key of the cache
    held_out = set(_hashes(*files[2:]))
    found, count, total = set(), 0, 0
    for pair in _hashes(*files[:2]):
        total += 1
        if pair in held_out:
            found.add(pair)
            count += 1
    return _SharedPairs(frozenset(found), count, total)


def _hashes(inputs: Path, targets: Path) -> Iterator[int]:
    """Yields the hashes of the pairs of which neither text is empty."""
    with open_text(inputs) as left, open_text(targets) as right:
        for (_, text, _), (_, target, _) in zip(_lines(left), _lines(right)):
            if text and target:
                yield _hash(text, target)


def _hash(text: bytes, target: bytes) -> int:
    return xxhash.xxh3_64_intdigest(b"%d %s%s" % (len(text), text, target))


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
