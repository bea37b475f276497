"""The source `labelled_files`: text files whose folders are their classes."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.division import FilePart, TextExample
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.file_splits import files_of_split
from fmjax.data.sources.find_files import find_files
from fmjax.data.sources.source import DOCUMENT_BYTES, Document
from fmjax.data.sources.text_split import check_hold_out, hash_threshold
from fmjax.errors import UserError
from fmjax.say_once import say_once
from fmjax.storage.paths import scheme_of

_SPLITS = ("names", "hash")


@configurable("labelled_files")
@dataclasses.dataclass(frozen=True)
class LabelledFiles:
    """Text files, each a text, in a folder for each class, for classification.

    The name of the folder that a file is in is the name of its class, as in aclImdb:
    `train/neg/0_3.txt`, `train/pos/0_9.txt`. Equal texts are in the same split.

    Attributes:
      files: a folder (its .txt files at any depth), a glob, or a tuple of these; not in
        a bucket.
      validation_files: files of the validation split, in the same form. Files that are
        in both are excluded from training.
      validation_fraction: share of the texts that is held out, by a hash of their
        content; 0 for no validation split. If None, folders and files named after the
        validation split are held out, or 0.1 if there are none.
      split: 'names': if names tell the splits, as `train/pos/0.txt` and
        `test/pos/0.txt` do, only files of `train` are trained on, and `validation` is
        the validation split; files of `test` are left out. 'hash': names tell nothing.
      split_seed: seed of the hash.
      classes: names of the folders that are the classes 0, 1, …; others, such as
        `unsup`, are left out. If empty, all folders with training files, in
        alphabetical order.
    """

    files: str | tuple[str, ...] = path()
    _: dataclasses.KW_ONLY
    validation_files: str | tuple[str, ...] | None = path(None)
    validation_fraction: float | None = None
    split: str = "names"
    split_seed: int = 0
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        check_hold_out(self, _SPLITS)
        for name in ("files", "validation_files"):
            patterns = getattr(self, name) or ()
            for pattern in (patterns,) if isinstance(patterns, str) else patterns:
                if scheme_of(pattern) not in ("", "file"):
                    raise UserError(
                        f"labelled_files.{name} = {pattern!r}: expected files of a "
                        "mounted file system, as each text is a file. From buckets "
                        "@labelled_records() reads the fields of records, such as "
                        "JSON lines."
                    )
        if len({*self.classes}) < len(self.classes):
            raise UserError(
                f"labelled_files.classes = {self.classes!r:.200}: expected distinct "
                "names."
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` unless its share is 0."""
        return ("train",) if self.validation_fraction == 0 else ("train", "validation")

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 0, 1, ….

        Raises:
          UserError: all files are in one folder.
        """
        if self.classes:
            return self.classes
        files, _ = self._files("train")
        names = tuple(sorted({file.parent.name for file in files}))
        if len(names) < 2:
            raise UserError(
                f"labelled_files.files = {self.files!r:.200}: all texts are in the "
                f"folder {names[0]!r}; expected a folder for each class."
            )
        return names

    def fingerprint(self, split: str) -> str:
        """Digest of the split's files, and of what tells their splits and classes."""
        files, fraction = self._files(split)
        if fraction:
            self._threshold(split)  # Raises if they cannot be split.
        cut = f"hash {fraction} {self.split_seed} {split}" if fraction else "all"
        key = (self.gin_name, self.class_names(), cut, digest_files(files))
        return xxhash.xxh3_128_hexdigest(repr(key).encode())

    def size(self, split: str) -> int:
        """Approximate bytes of text of a split."""
        files, fraction = self._files(split)
        share = fraction if split == "validation" else 1 - fraction
        total = sum(file.stat().st_size for file in files)
        return round(total * (share if fraction else 1))

    def documents(self, split: str) -> Iterator[Document]:
        """The texts of a split, for training a tokenizer."""
        for part in self.parts_of(split):
            for found in self.read_of(split, part):
                (text,) = found.texts
                if not found.fault and text.strip() and len(text) <= DOCUMENT_BYTES:
                    yield found.name, text

    def features(self) -> dict[str, str]:
        """Names of the features of examples."""
        return {"targets": "text", "labels": "labels", "name": "name"}

    def division(self, split: str) -> "FilesDivision":
        """The split in parts; see `Division`."""
        return FilesDivision(self, split)

    def seqio_source(self):
        """Raises a UserError: a seqio task of it is not needed."""
        raise UserError(
            "@labelled_files() cannot be mixed with a task of seqio's registry while "
            "streaming; bind data.streaming=False."
        )

    def root(self, split: str) -> Path:
        """The folder that all files of a split are below."""
        return self._roots[split]

    def parts_of(self, split: str) -> list[FilePart]:
        """The files of a split, each a part."""
        files, _ = self._files(split)
        return [FilePart(file, 0, None, 1, file.stat().st_size) for file in files]

    def read_of(self, split: str, part: FilePart) -> Iterator[TextExample]:
        """Yields the text of a file, unless it is of the other split.

        A text of more than 4 MiB is truncated to a length that is still refused.
        """
        with open(part.file, "rb") as file:
            text = file.read(DOCUMENT_BYTES + 1)
        threshold = self._threshold(split)
        if threshold is not None and (self._hash(text) < threshold) != (
            split == "validation"
        ):
            return
        name = os.path.relpath(part.file, self.root(split))
        number = self._numbers.get(part.file.parent.name)
        if number is None:
            fault = (
                f"is in the folder {part.file.parent.name!r}; expected one of the "
                f"classes {', '.join(map(repr, self._numbers))}"
            )
            yield TextExample(name, (b"",), fault, ())
        else:
            yield TextExample(name, (text,), labels=(number,))

    @functools.cached_property
    def _roots(self) -> dict[str, Path]:
        return {
            split: Path(os.path.commonpath([file.parent for file in files]))
            for split, (files, _) in self._files_by_split.items()
        }

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.class_names())}

    def _files(self, split: str) -> tuple[list[Path], float]:
        return self._files_by_split[split]

    @functools.cached_property
    def _files_by_split(self) -> dict[str, tuple[list[Path], float]]:
        return {split: files_of_split(self, split, self._find) for split in self.splits}

    def _find(self, patterns: str | tuple[str, ...], binding: str) -> list[Path]:
        found = find_files(patterns, binding)
        if not self.classes:
            return found
        kept = [file for file in found if file.parent.name in self.classes]
        others = sorted({file.parent.name for file in found} - {*self.classes})
        if not kept:
            raise UserError(
                f"{binding} = {patterns!r:.200}: no text is in a folder of "
                f"labelled_files.classes = {self.classes!r:.200}; there are "
                f"{', '.join(map(repr, others[:5]))}."
            )
        if others:
            say_once(
                f"{binding} = {patterns!r:.200}: {len(found) - len(kept):,} files are "
                f"in other folders than labelled_files.classes "
                f"({', '.join(others[:5])}); they are left out."
            )
        return kept

    def _threshold(self, split: str) -> int | None:
        _, fraction = self._files(split)
        return self._hash_threshold if fraction else None

    @functools.cached_property
    def _hash_threshold(self) -> int:
        files, fraction = self._files("train")
        try:
            return hash_threshold(
                (self._hash(file.read_bytes()[: DOCUMENT_BYTES + 1]) for file in files),
                fraction,
            )
        except ValueError as error:
            raise UserError(
                f"labelled_files.validation_fraction = {fraction} of "
                f"labelled_files.files = {self.files!r:.200}: {error}, so none can be "
                "held out. Bind labelled_files.validation_files, or "
                "labelled_files.validation_fraction=0 for no validation split."
            ) from None

    def _hash(self, text: bytes) -> int:
        return xxhash.xxh3_64_intdigest(text, self.split_seed)


class FilesDivision:
    """A split of labelled files; see `Division`."""

    def __init__(self, source: LabelledFiles, split: str):
        """Finds the files."""
        self._source, self._split = source, split
        self.root = source.root(split)

    def parts(self, size: int | None = None, numbered: bool = True) -> list[FilePart]:
        """The parts, each a file; see `Division`."""
        del size, numbered
        return self._source.parts_of(self._split)

    def read(self, part: FilePart) -> Iterator[TextExample]:
        """The text of a part; see `LabelledFiles.read_of`."""
        return self._source.read_of(self._split, part)
