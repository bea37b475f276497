"""Where documents come from: text files, TFDS, or Python's own standard library.

A source names its splits, tells them apart by a fingerprint of their contents, and
gives itself to seqio as a data source. Only `seqio_source` needs TensorFlow (and, for
`tfds`, reading the documents).
"""

import dataclasses
import functools
import glob
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import xxhash

from fmjax.configurable import configurable, path
from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.errors import UserError, suggest

# Tokenizing takes some 40 bytes of memory a byte, so no document is much longer: files
# are cut, and what comes as one example is broken (see `documents`).
DOCUMENT_BYTES = 1 << 22

Document = tuple[str, bytes]  # A name for messages, and the text in UTF-8.


class Source(Protocol):
    """What a text task needs of the place its documents come from."""

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", and "validation" where there is one."""

    def fingerprint(self, split: str) -> str:
        """Changes whenever the documents of the split do."""

    def documents(self, split: str) -> Iterator[Document]:
        """Documents in an order that never changes."""

    def size(self, split: str) -> int | None:
        """Bytes of text, roughly, for a progress bar; None where unknown."""

    def features(self) -> dict[str, str]:
        """Names for seqio's `rekey`: {"targets": the text, ("name": the name)}."""

    def seqio_source(self):
        """The same documents as a seqio.DataSource."""


@configurable("text_files")
@dataclasses.dataclass(frozen=True)
class TextFiles:
    """UTF-8 text files.

    Attributes:
      files: a path or glob (`**` goes into folders), or a tuple of them.
      document: what one document is: a 'file', a 'line', or a block of lines between
        blank lines ('blank_line'). One of over 4 MiB is several documents, cut at the
        ends of lines where it has some.
      validation_files: the validation split, as `files`. Without it, validation is the
        tail of `files`.
      validation_fraction: that tail's share of the bytes, in the order of the files'
        names; 0.1 if left out. A cut inside a document splits it where documents are
        files, and leaves it to training otherwise.
    """

    files: str | tuple[str, ...] = path()
    document: str = "file"
    validation_files: str | tuple[str, ...] | None = path(None)
    validation_fraction: float | None = None

    def __post_init__(self):
        kinds = ("file", "line", "blank_line")
        if self.document not in kinds:
            raise UserError(
                f"text_files.document is {self.document!r}; expected one of {kinds}."
                + suggest(self.document, kinds)
            )
        if self.validation_fraction is None:
            return
        if self.validation_files is not None:
            raise UserError(
                "text_files.validation_files and text_files.validation_fraction are "
                "both set; set one of them."
            )
        if not 0 <= self.validation_fraction < 1:
            raise UserError(
                "text_files.validation_fraction is "
                f"{self.validation_fraction}; expected 0 <= fraction < 1."
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, and `validation` unless its share is 0."""
        if self.validation_files is None and self.validation_fraction == 0:
            return ("train",)
        return ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's files and of how they are cut into documents."""
        files, begin, end = self._part(split)
        contents = digest_files(files)
        return xxhash.xxh3_128_hexdigest(
            f"text_files {self.document} {begin} {end} {contents}".encode()
        )

    def documents(self, split: str) -> Iterator[Document]:
        """The split's documents; blank ones are left out."""
        files, begin, end = self._part(split)
        start = 0  # Where the file starts in the concatenation of all files.
        for file in files:
            size = os.path.getsize(file)
            if start < end and start + size > begin:
                yield from self._cut(file, begin - start, end - start)
            start += size

    def size(self, split: str) -> int:
        """Bytes of the split."""
        _, begin, end = self._part(split)
        return end - begin

    def features(self) -> dict[str, str]:
        """As `function_source` yields them."""
        return {"targets": "text", "name": "name"}

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return function_source(self)

    def _part(self, split: str) -> tuple[list[Path], int, int]:
        """Files, and the range of bytes of their concatenation, of a split."""
        check_split("text_files", split, self.splits)
        if split == "validation" and self.validation_files is not None:
            files = _expand(self.validation_files, "text_files.validation_files")
        else:
            files = _expand(self.files, "text_files.files")
        total = sum(os.path.getsize(file) for file in files)
        if self.validation_files is not None:
            return files, 0, total
        fraction = self.validation_fraction
        train = int(total * (1 - (0.1 if fraction is None else fraction)))
        return (files, 0, train) if split == "train" else (files, train, total)

    def _cut(self, file: Path, begin: int, end: int) -> Iterator[Document]:
        with open(file, "rb") as handle:
            if os.path.getsize(file) == 0:
                return
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if self.document == "file":
                    begin = _character_start(content, begin)
                    end = _character_start(content, end)
                    yield from cut_text(file.name, content, begin, end)
                    return
                separator = b"\n" if self.document == "line" else rb"(?:\n[ \t\r]*)+\n"
                for number, (start, stop) in enumerate(_between(separator, content)):
                    if begin <= start < end:
                        while stop > start and content[stop - 1] == ord("\r"):
                            stop -= 1
                        name = f"{file.name}, {self.document} {number + 1}"
                        yield from cut_text(name, content, start, stop)


def function_source(source: Source):
    """A seqio.FunctionDataSource over a source's `documents`."""
    seqio = import_seqio()
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del shuffle_files, seed  # Documents have one order; seqio shuffles after us.
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


def _expand(patterns: str | tuple[str, ...], binding: str) -> list[Path]:
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    found = set()
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        matches = glob.glob(expanded, recursive=True)
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if Path(expanded).is_file():
            files.append(Path(expanded))  # A name may itself contain [, ] or *.
        if not files:
            raise UserError(f"{binding} = {pattern!r} matches no file.")
        found.update(file.absolute() for file in files)
    return sorted(found)


def digest_files(files: list[Path]) -> str:
    """Digest of contents, and of names relative to the folder that holds them all."""
    root = os.path.commonpath([file.parent for file in files])
    digest = xxhash.xxh3_128()
    for file in files:
        stat = file.stat()
        contents = _digest_file(file, stat.st_size, stat.st_mtime_ns)
        digest.update(f"{os.path.relpath(file, root)}\0{contents}\0".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=100_000)
def _digest_file(file: Path, size: int, modified: int) -> str:
    """Size and time of the file are in the signature to key the memo."""
    del size, modified
    digest = xxhash.xxh3_128()
    with open(file, "rb") as handle:
        while chunk := handle.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def cut_text(
    name: str, content: bytes | mmap.mmap, begin: int, end: int
) -> Iterator[Document]:
    """A stretch of content as documents of at most 4 MiB, blank ones left out."""
    while begin < end:
        stop = _line_end(content, begin, end)
        text = content[begin:stop]
        if text.strip():
            yield name, text
        begin = stop


def _character_start(content: bytes | mmap.mmap, position: int) -> int:
    """The first position from `position` on that starts a UTF-8 character."""
    position = min(max(position, 0), len(content))
    # No character goes on for more than three bytes; what does is no UTF-8.
    for start in range(position, position + 4):
        if start >= len(content) or content[start] & 0xC0 != 0x80:
            return start
    return position


def _line_end(content: bytes | mmap.mmap, begin: int, end: int) -> int:
    """Where a document that starts at `begin` ends: `end`, if that is near enough."""
    if end - begin <= DOCUMENT_BYTES:
        return end
    line_end = content.rfind(b"\n", begin, begin + DOCUMENT_BYTES) + 1
    return line_end or _character_start(content, begin + DOCUMENT_BYTES - 3)


def _between(separator: bytes, content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Start and end of the stretches of content between matches of a regex."""
    start = 0
    for match in re.finditer(separator, content):
        yield start, match.start()
        start = match.end()
    yield start, len(content)
