"""Dividing text files into parts: at the ends of lines, paragraphs or documents."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fmjax.data.sources.division import FilePart, TextExample, number_in_file
from fmjax.data.sources.text_reader import OpenText, cut, open_text, scan_text

# (start, stop) in the concatenation of all files, in bytes.
Range = tuple[int, int]


class Units(NamedTuple):
    """What is one document of a text, if it is not the whole file.

    Attributes:
      name: as messages name it.
      between: (start, stop) of all in a range of the text.
      following: where the next one starts.
      count: number of ends of such units in a range.
    """

    name: str
    between: Callable[[OpenText, int, int], Iterator[Range]]
    following: Callable[[OpenText, int], int]
    count: Callable[[OpenText, int, int], int]


UNITS = {
    "line": Units("line", OpenText.lines, OpenText.next_line, OpenText.count_lines),
    "blank_line": Units(
        "paragraph",
        OpenText.paragraphs,
        OpenText.next_paragraph,
        OpenText.count_paragraphs,
    ),
}


class TextDivision:
    """A split of text files; see `Division`."""

    def __init__(
        self,
        files: Sequence[Path],
        units: Units | None,
        ranges: Sequence[Range] | None,
        reach: int,
        is_own: Callable[[OpenText, int, int], bool] | None,
    ):
        """Divides nothing yet.

        Args:
          files: all files that the split is in, in order.
          units: lines or paragraphs that are documents; None if files are.
          ranges: ranges of the split, in bytes of all files; None for everything.
          reach: by how many bytes their ends may move to a line end.
          is_own: whether a unit of an open text belongs to the split; None if this
            follows from the ranges.
        """
        self._files, self._units = files, units
        self._ranges, self._reach, self._is_own = ranges, reach, is_own
        self.root = Path(os.path.commonpath([file.parent for file in files]))
        self._starts: dict[Path, int] = {}
        start = 0
        for file in files:
            self._starts[file] = start
            start += scan_text(file).size

    def parts(self, size: int | None = None, numbered: bool = True) -> list[FilePart]:
        """The parts; see `Division`. A file in UTF-16 is one part."""
        return [
            part
            for file in self._files
            if self._ranges is None or self._own(file)
            for part in self._parts(file, size, numbered)
        ]

    def read(self, part: FilePart) -> Iterator[TextExample]:
        """The examples of a part, without blank ones."""
        with self._open(part.file) as text:
            stop = text.end if part.stop is None else part.stop
            if self._units is None:
                for name, content in text.documents("", part.start, stop):
                    yield TextExample(name, (content,))
                return
            own = None if self._ranges is None else self._own(part.file)
            start = max(part.start, text.begin)
            # Closed first, since a search in the file keeps it from being closed.
            with contextlib.closing(self._units.between(text, start, stop)) as pieces:
                for number, (begin, end) in enumerate(pieces):
                    if own is not None:
                        at = begin - text.begin
                        if not any(first <= at < last for first, last in own):
                            continue
                    elif self._is_own and not self._is_own(text, begin, end):
                        continue
                    place = f"{self._units.name} {number_in_file(part, number)}"
                    for name, content in text.documents(place, begin, end):
                        yield TextExample(name, (content,))

    def _open(self, file: Path):
        return open_text(file, os.path.relpath(file, self.root))

    def _own(self, file: Path) -> list[Range]:
        """The split's ranges in a file, relative to its beginning."""
        start = self._starts[file]
        stop = start + scan_text(file).size
        return [
            (begin - start, end - start)
            for begin, end in self._ranges or ()
            if begin < stop and end > start
        ]

    def _parts(
        self, file: Path, size: int | None, numbered: bool
    ) -> Iterator[FilePart]:
        scan = scan_text(file)
        if not scan.encoding.startswith("utf-8"):
            size = None
        if self._units is not None and size is None:
            yield FilePart(file, 0, None, 1, scan.size)
            return
        with self._open(file) as text:
            if self._units is None:
                yield from self._pieces(file, text, size, scan.newline)
                return
            start, first = text.begin, 1
            while start < text.end:
                stop = self._units.following(text, min(start + size, text.end))
                number = first if numbered or start == text.begin else 0
                yield FilePart(file, start, stop, number, stop - start)
                first += self._units.count(text, start, stop) if numbered else 0
                start = stop

    def _pieces(
        self, file: Path, text: OpenText, size: int | None, newline: bytes
    ) -> Iterator[FilePart]:
        """Ranges of a file that is a document; long ones are cut as `read` does."""
        total = scan_text(file).size
        for begin, end in self._own(file):
            # Both splits move their common boundary in the same way.
            begin = text.cut_near(text.begin + max(begin, 0), self._reach)
            end = text.cut_near(text.begin + min(end, total), self._reach)
            start = begin
            for _, stop in cut(text.content, begin, end, newline) if size else ():
                if stop - start >= size:
                    yield FilePart(file, start, stop, 0, stop - start)
                    start = stop
            if start < end:
                yield FilePart(file, start, end, 0, end - start)
