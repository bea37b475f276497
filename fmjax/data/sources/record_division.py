"""Dividing record files into parts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fmjax.data.sources.data_files import common_folder, relative_name
from fmjax.data.sources.division import FilePart, RawExample
from fmjax.data.sources.record_formats.file_parts import file_parts


class Records(Protocol):
    """What a division needs of its source of records."""

    def read_part(self, part: FilePart) -> Iterator[tuple[str, tuple, str]]:
        """Yields (place, values, fault) of the records of a part, of both splits."""

    def hash_of(self, values: tuple) -> int:
        """The 64-bit hash that tells the split of a record."""

    def examples_of(self, name: str, values: tuple, fault: str) -> Iterator[RawExample]:
        """Yields the examples that a record is before it is tokenized or checked."""


class RecordDivision:
    """A split of record files; see `Division`."""

    def __init__(
        self,
        source: Records,
        split: str,
        files: list[Path],
        threshold: int | None,
        form: str | None = None,
    ):
        """Reads nothing yet.

        Args:
          source: the source.
          split: name of the split.
          files: all files that the split is in, in order.
          threshold: records whose hashes are below it are held out; None if all
            records of the files are of the split.
          form: the format of the files; None for what their names tell.
        """
        self._source, self._split, self._form = source, split, form
        self._files, self._threshold = files, threshold
        self.root = common_folder(files)

    def parts(self, size: int | None = None, numbered: bool = True) -> list[FilePart]:
        """The parts; see `Division` and `file_parts`."""
        return [
            part
            for file in self._files
            for part in file_parts(file, size, numbered, self._form)
        ]

    def read(self, part: FilePart) -> Iterator[RawExample]:
        """The examples of a part, also corrupt and blank ones."""
        for record in self.found(part):
            yield from self._source.examples_of(*record)

    def found(self, part: FilePart) -> Iterator[tuple[str, tuple, str]]:
        """Yields (name, values, fault) of a part; see `RecordSource.found`."""
        name = relative_name(part.file, self.root)
        for place, values, fault in self._source.read_part(part):
            if self._threshold is not None:
                held_out = not fault and self._source.hash_of(values) < self._threshold
                if held_out != (self._split == "validation"):
                    continue
            yield f"{name}, {place}", values, fault
