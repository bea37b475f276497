"""Dividing files of tokens into parts: at the ends of documents."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from fmjax.data.sources.division import FilePart, TextExample, Tokens
from fmjax.data.sources.source import DOCUMENT_BYTES
from fmjax.data.sources.token_formats.flat_tokens import (
    documents_between,
    next_document,
    open_flat,
)
from fmjax.data.sources.token_formats.megatron_index import read_index
from fmjax.errors import UserError

# Tokens of the pieces of a stream without documents.
PIECE = 1 << 20


class TokenFile(Protocol):
    """A file of tokens.

    Attributes:
      size: number of its units.
      unit_bytes: bytes of one of them, on average.
    """

    size: int
    unit_bytes: float

    def following(self, unit: int) -> int:
        """The first unit from `unit` onwards at which a document starts."""

    def documents(self, start: int, stop: int) -> Iterator[tuple[str, Tokens]]:
        """Yields (place, ids without EOS) of the documents in a range of units."""


class FlatFile:
    """A flat stream, whose units are tokens; see `TokenFile`.

    Attributes:
      size: number of tokens.
      unit_bytes: bytes of an id.
      ids: all of them, memory-mapped, [size].
    """

    def __init__(self, file: Path, dtype: str, binding: str, eos_id: int | None):
        self.ids, self._eos_id = open_flat(file, dtype, binding), eos_id
        self.size, self.unit_bytes = len(self.ids), self.ids.dtype.itemsize

    def following(self, unit: int) -> int:
        """The first token from `unit` onwards at which a document or piece starts."""
        if unit <= 0 or self._eos_id is None:
            return min(-(-unit // PIECE) * PIECE, self.size)
        return next_document(self.ids, unit, self._eos_id)

    def documents(self, start: int, stop: int) -> Iterator[tuple[str, Tokens]]:
        """The documents, or without EOS pieces of the stream."""
        if self._eos_id is None:
            found = pieces(start, stop, PIECE)  # The same in parts of any size.
        else:
            found = documents_between(self.ids, start, stop, self._eos_id)
        for begin, end in found:
            yield f"token {begin}", Tokens(self.ids[begin:end], begin)


class MegatronFile:
    """A .bin with Megatron's .idx, whose units are documents; see `TokenFile`.

    Attributes:
      size: number of documents.
      unit_bytes: bytes of a document, on average.
      ids: of all documents, memory-mapped.
    """

    def __init__(self, file: Path, eos_id: int | None):
        size = file.stat().st_size
        self._index, self._eos_id = read_index(file.with_suffix(".idx"), size), eos_id
        kind = self._index.dtype
        tokens = size // kind.itemsize
        self.ids = np.memmap(file, kind, "r", shape=tokens) if tokens else np.zeros(0)
        self.size = len(self._index.documents) - 1
        self.unit_bytes = size / max(self.size, 1)

    def following(self, unit: int) -> int:
        """The unit itself."""
        return min(unit, self.size)

    def documents(self, start: int, stop: int) -> Iterator[tuple[str, Tokens]]:
        """The documents; of several sequences, these one after another."""
        for number in range(start, stop):
            ranges = list(self._index.ranges(number))
            ids = self.ids[slice(*ranges[0])] if ranges else self.ids[:0]
            if len(ranges) > 1:
                ids = np.concatenate([self.ids[slice(*own)] for own in ranges])
            if len(ids) and self._eos_id is not None and ids[-1] == self._eos_id:
                ids = ids[:-1]
            first = ranges[0][0] if ranges else 0
            yield f"document {number}", Tokens(ids, first)


class Range(NamedTuple):
    """Units of a file that belong to a split."""

    start: int
    stop: int


class TokenDivision:
    """A split of files of tokens; see `Division`."""

    def __init__(
        self,
        files: Sequence[Path],
        opened: Callable[[Path], TokenFile],
        ranges: dict[Path, list[Range]] | None,
        is_own: Callable[[np.ndarray], bool] | None,
    ):
        """Reads nothing yet.

        Args:
          files: all files that the split is in, in order.
          opened: opens a file.
          ranges: the ranges of the split in each file; None for everything.
          is_own: whether a document belongs to the split; None if this follows from
            the ranges.
        """
        self._files, self._ranges, self._is_own = files, ranges, is_own
        self._opened = functools.lru_cache(maxsize=16)(opened)
        self.root = Path(os.path.commonpath([file.parent for file in files]))

    def parts(self, size: int | None = None, numbered: bool = True) -> list[FilePart]:
        """The parts; see `Division`."""
        del numbered
        return [part for file in self._files for part in self._parts(file, size)]

    def read(self, part: FilePart) -> Iterator[TextExample]:
        """The documents of a part; long ones are cut."""
        name = os.path.relpath(part.file, self.root)
        stop = self._opened(part.file).size if part.stop is None else part.stop
        for place, tokens in self._opened(part.file).documents(part.start, stop):
            if self._is_own is not None and not self._is_own(tokens.ids):
                continue
            for begin, end in pieces(0, len(tokens.ids), DOCUMENT_BYTES):
                own = Tokens(tokens.ids[begin:end], tokens.first + begin)
                yield TextExample(f"{name}, {place}", (), tokens=own)

    def _parts(self, file: Path, size: int | None) -> Iterator[FilePart]:
        opened = self._opened(file)
        every = [Range(0, opened.size)]
        for start, stop in every if self._ranges is None else self._ranges[file]:
            step = stop - start
            if size is not None:
                step = max(1, int(size / opened.unit_bytes))
            while start < stop:
                after = stop
                if start + step < stop:
                    after = min(opened.following(start + step), stop)
                taken = round((after - start) * opened.unit_bytes)
                yield FilePart(file, start, after, 0, taken)
                start = after


def pieces(start: int, stop: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of pieces of a range, cut at multiples of `limit`."""
    while start < stop:
        end = min((start // limit + 1) * limit, stop)
        yield start, end
        start = end


def open_token_file(
    file: Path, dtype: str, binding: str, eos_id: int | None
) -> TokenFile:
    """Opens a .bin: with an .idx beside it as Megatron's, else as a flat stream.

    Raises:
      UserError: a file cannot be read, or is truncated or damaged.
    """
    try:
        if file.with_suffix(".idx").is_file():
            return MegatronFile(file, eos_id)
        return FlatFile(file, dtype, binding, eos_id)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
