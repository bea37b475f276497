"""The source `text_files`: documents from a user's text files."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.find_files import find_files
from fmjax.data.sources.source import Document, check_split, function_source
from fmjax.data.sources.text_division import UNITS, Range, TextDivision
from fmjax.data.sources.text_reader import (
    OpenText,
    is_json_lines,
    open_text,
    scan_text,
)
from fmjax.data.sources.text_split import (
    check_hold_out,
    hash_threshold,
    held_out_blocks,
    held_out_files,
)
from fmjax.errors import UserError, suggest
from fmjax.say_once import say_once

_DEFAULT_FRACTION = 0.1
_RECORDS = (".jsonl", ".ndjson")
# Bytes from which it is told that text is records.
_HEAD_BYTES = 1 << 16


@configurable("text_files")
@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Text files in UTF-8, or in UTF-16 with a byte order mark.

    Attributes:
      files: a file, a folder (its .txt files at any depth), a glob (`**` matches
        folders at any depth), or a tuple of these.
      document: what is one document: a 'file', a 'line', or lines between blank lines
        ('blank_line'). Documents of more than 4 MiB are cut, at line ends if possible.
      validation_files: files of the validation split, in the same form as `files`.
        Files that are in both are excluded from training. If None, a part of `files` is
        held out.
      validation_fraction: share of `files` that is held out; 0.1 if None, 0 for no
        validation split.
      split: how the held-out part is chosen. 'hash': lines and paragraphs by a hash of
        their text, so that equal ones are in the same split; whole files likewise if
        there are many, else blocks spread over all files. 'tail': the last bytes of all
        files in the order of their names; a document at the boundary is cut if
        documents are files, and else belongs to training.
      split_seed: seed of the choice with 'hash'.
    """

    files: str | tuple[str, ...] = path()
    document: str = "file"
    validation_files: str | tuple[str, ...] | None = path(None)
    validation_fraction: float | None = None
    split: str = "hash"
    split_seed: int = 0

    def __post_init__(self):
        kinds = ("file", "line", "blank_line")
        if self.document not in kinds:
            raise UserError(
                f"text_files.document = {self.document!r}: expected one of {kinds}."
                + suggest(self.document, kinds)
            )
        check_hold_out(self, ("hash", "tail"))

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` unless its share is 0."""
        if self.validation_files is None and self.validation_fraction == 0:
            return ("train",)
        return ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's files and of the settings that make documents."""
        files = self._files(split)
        contents = digest_files(files, lambda file: scan_text(file).digest)
        if self._splits_by_hash:
            if self.document != "file":
                self._threshold(files)  # Raises if the files cannot be split.
            cut = f"hash {self._fraction} {self.split_seed} {split}"
        else:
            (((begin, end),), _) = self._ranges(files, split)
            cut = f"{begin} {end}"
        key = f"text_files {self.document} {cut} {contents}"
        if any(self._is_normalized(file) for file in files):
            key += " normalized"  # Earlier versions did not decode or strip them.
        return xxhash.xxh3_128_hexdigest(key.encode())

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, without blank ones.

        Raises:
          UserError: a file is not text, or there are too few documents to split.
        """
        division = self.division(split)
        for part in division.parts():
            for example in division.read(part):
                yield example.name, example.texts[0]

    def division(self, split: str) -> TextDivision:
        """The split in parts.

        Raises:
          UserError: as in `documents`.
        """
        files, units = self._files(split), UNITS.get(self.document)
        if units is None or not self._splits_by_hash:
            return TextDivision(files, units, *self._ranges(files, split), None)
        threshold = self._threshold(files)

        def is_own(text: OpenText, begin: int, stop: int) -> bool:
            held_out = text.digest(begin, stop, self.split_seed) < threshold
            return held_out == (split == "validation")

        return TextDivision(files, units, None, 0, is_own)

    def size(self, split: str) -> int:
        """Approximate bytes of the split."""
        files = self._files(split)
        if self._splits_by_hash and self.document != "file":
            share = self._fraction
            total = sum(scan_text(file).size for file in files)
            return round(total * (share if split == "validation" else 1 - share))
        return sum(end - begin for begin, end in self._ranges(files, split)[0])

    def features(self) -> dict[str, str]:
        """Names of the features, as `function_source` yields them."""
        return {"targets": "text", "name": "name"}

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return function_source(self)

    @property
    def _fraction(self) -> float:
        given = self.validation_fraction
        return _DEFAULT_FRACTION if given is None else given

    @property
    def _splits_by_hash(self) -> bool:
        undivided = self.validation_files is not None or self._fraction == 0
        return self.split == "hash" and not undivided

    def _files(self, split: str) -> list[Path]:
        check_split("text_files", split, self.splits)
        if self.validation_files is None:
            return _found(self.files, "text_files.files")
        held_out = _found(self.validation_files, "text_files.validation_files")
        if split == "validation":
            return held_out
        files = _found(self.files, "text_files.files")
        digests = {scan_text(file).digest for file in held_out}
        rest = [file for file in files if scan_text(file).digest not in digests]
        if not rest:
            raise UserError(
                f"text_files.files = {self.files!r}: all of these files are also in "
                "text_files.validation_files, so there is nothing to train on."
            )
        if len(rest) < len(files):
            say_once(
                f"{len(files) - len(rest)} of the {len(files)} files of "
                f"text_files.files = {self.files!r} are also in "
                "text_files.validation_files; they are excluded from training"
            )
        return rest

    def _ranges(self, files: list[Path], split: str) -> tuple[list[Range], int]:
        """The split's byte ranges, and by how many bytes ends may move to a newline."""
        scans = [scan_text(file) for file in files]
        total = sum(scan.size for scan in scans)
        if self.validation_files is not None:
            return [(0, total)], 0
        if not self._splits_by_hash:
            train = int(total * (1 - self._fraction))
            return [(0, train) if split == "train" else (train, total)], 0
        sizes: dict[str, int] = {}
        for scan in scans:
            sizes[scan.digest] = sizes.get(scan.digest, 0) + scan.size
        whole = held_out_files(sizes, self._fraction, self.split_seed)
        if whole is None:
            blocks = held_out_blocks(total, self._fraction, self.split_seed)
            ranges = blocks.held_out if split == "validation" else blocks.between
            return ranges, blocks.reach
        ranges, start = [], 0
        for scan in scans:
            if (scan.digest in whole) == (split == "validation"):
                ranges.append((start, start + scan.size))
            start += scan.size
        return ranges, 0

    def _threshold(self, files: list[Path]) -> int:
        units = UNITS[self.document]

        def hashes() -> Iterator[int]:
            for file in files:
                with open_text(file) as text:
                    for begin, stop in units.between(text, text.begin, text.end):
                        if not text.is_blank(begin, stop):
                            yield text.digest(begin, stop, self.split_seed)

        try:
            return hash_threshold(hashes(), self._fraction)
        except ValueError as error:
            raise UserError(
                f"text_files.validation_fraction = {self._fraction} of "
                f"text_files.files = {self.files!r}: {error}, so none can be held out "
                f"(text_files.document = {self.document!r}). Bind "
                "text_files.validation_files, or text_files.validation_fraction=0 for "
                "no validation split."
            ) from None

    def _is_normalized(self, file: Path) -> bool:
        scan = scan_text(file)
        return not scan.is_plain or (scan.has_crlf and self.document != "line")


def _found(patterns: str | tuple[str, ...], binding: str) -> list[Path]:
    """The files; says which are probably not meant as plain text."""
    files = find_files(patterns, binding)
    for file in [f for f in files if f.suffix.lower() in _RECORDS] + files[:1]:
        if _holds_json_lines(file):
            say_once(
                f"{binding} = {patterns!r}: the first lines of {file} are objects of "
                "JSON; they are read with their braces and quotes, as plain text. "
                "text_task.source=@record_files() reads the texts in JSON lines, with "
                "record_files.format='jsonl' whatever names end in."
            )
            break
    return files


def _holds_json_lines(file: Path) -> bool:
    with contextlib.suppress(OSError), open(file, "rb") as content:
        head = content.read(_HEAD_BYTES)
        return is_json_lines(head, len(head) < _HEAD_BYTES)
    return False
