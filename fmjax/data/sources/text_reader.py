"""Reading text files as UTF-8 with LF line ends: for texts, pairs and captions.

A byte order mark is removed, UTF-16 with a byte order mark is decoded, and CRLF becomes
LF, as does CR in a file without LF. Files that are not text are refused: compressed
ones, and files with many NULs. Files are memory-mapped, never read as a whole.
"""

import codecs
import contextlib
import functools
import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from fmjax.data.sources import source
from fmjax.data.sources.source import Document
from fmjax.errors import UserError

_CHUNK = 1 << 24
# In UTF-16 every second byte of English text is a NUL, and every tenth byte of text
# with few spaces and digits; UTF-8 text has none.
_MAX_NUL_SHARE = 0.01
# First bytes of files that are not text → what they are and how to convert them.
SIGNATURES = {
    b"\x1f\x8b": ("compressed by gzip", "decompress it with `gunzip`"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "decompress it with `unzstd`"),
    b"BZh": ("compressed by bzip2", "decompress it with `bunzip2`"),
    b"\xfd7zXZ\0": ("compressed by xz", "decompress it with `unxz`"),
    b"\x04\x22\x4d\x18": ("compressed by LZ4", "decompress it with `unlz4`"),
    b"PK\x03\x04": ("a zip archive", "unpack it with `unzip`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it"),
    b"PAR1": ("Parquet", "read it with `text_task.source=@record_files()`"),
    b"ARROW1": ("Arrow", "read it with `text_task.source=@record_files()`"),
    b"%PDF-": ("PDF", "extract its text"),
    b"SQLite format 3\0": ("an SQLite database", "write its texts to a text file"),
}
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def is_json_lines(head: bytes, is_whole: bool) -> bool:
    """Whether lines are all objects of JSON.

    Args:
      head: the first bytes of a file.
      is_whole: whether they are the file; if not, the last line may be cut.
    """
    lines = [line for line in head.splitlines() if line.strip()]
    whole = lines if is_whole else lines[:-1]
    try:
        return bool(whole) and all(isinstance(json.loads(x), dict) for x in whole[:50])
    except (ValueError, RecursionError):
        return False


class TextScan(NamedTuple):
    """The result of one pass over a text file.

    Attributes:
      digest: digest of the file's bytes, equal to `digest_file`.
      size: bytes of its text in UTF-8, without a byte order mark.
      encoding: "utf-8", "utf-8-sig", "utf-16-le" or "utf-16-be".
      newline: the line end, b"\\n" or b"\\r".
      has_crlf: whether some lines end in CR LF.
    """

    digest: str
    size: int
    encoding: str
    newline: bytes
    has_crlf: bool

    @property
    def is_plain(self) -> bool:
        """Whether the file's bytes are its text, apart from CRLF."""
        return self.encoding == "utf-8" and self.newline == b"\n"


def scan_text(file: Path) -> TextScan:
    """Scans a text file; again only after its size or time has changed.

    Raises:
      UserError: the file cannot be read or is not text: it is compressed, a database,
        UTF-32 or invalid UTF-16, or more than 1% of its bytes are NUL.
    """
    try:
        stat = file.stat()
        return _scan(file, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error


class OpenText:
    """The content of an open text file; positions are byte offsets.

    Attributes:
      begin: start of the text, after a byte order mark.
      end: end of the text.
    """

    def __init__(self, content: mmap.mmap | bytes, name: str, scan: TextScan):
        """Wraps the content of a file.

        Args:
          content: the content in UTF-8.
          name: name of the file in messages.
          scan: the scan of the file.
        """
        self._content, self._name, self._scan = content, name, scan
        has_bom = scan.encoding == "utf-8-sig"
        self.begin = len(codecs.BOM_UTF8) if has_bom else 0
        self.end = len(content)

    def lines(
        self, begin: int | None = None, end: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of every line without its line end; also empty lines.

        Args:
          begin: where the first line starts; the text's begin if None.
          end: where the last one ends; the text's end if None.
        """
        end = self.end if end is None else end
        for start, stop in self._between(self._line_end, begin, end):
            if start < end:
                yield start, self._before_cr(start, stop)

    def paragraphs(
        self, begin: int | None = None, end: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of every paragraph: lines between blank lines.

        Arguments as in `lines`.
        """
        end = self.end if end is None else end
        for start, stop in self._between(self._blank_lines, begin, end):
            if start < end or end == self.end:
                yield start, self._before_cr(start, stop)

    def next_line(self, position: int) -> int:
        """Where the first line starts after a position; the end if there is none."""
        return self._after(self._line_end, position)

    def next_paragraph(self, position: int) -> int:
        """Where the first paragraph starts after a position; else the end."""
        return self._after(self._blank_lines, position)

    def count_lines(self, start: int, stop: int) -> int:
        """Number of line ends in a range."""
        steps = range(start, stop, _CHUNK)
        ends = (min(at + _CHUNK, stop) for at in steps)
        return sum(
            self._content[at:end].count(self._scan.newline)
            for at, end in zip(steps, ends)
        )

    def count_paragraphs(self, start: int, stop: int) -> int:
        """Number of ranges of blank lines in a range."""
        found = re.compile(self._blank_lines).finditer(self._content, start, stop)
        return sum(1 for _ in found)

    def read(self, start: int, stop: int) -> bytes:
        """The text of a range, with LF line ends."""
        text = self._content[start:stop]
        if self._scan.newline == b"\r":
            return text.replace(b"\r", b"\n")
        return text.replace(b"\r\n", b"\n") if self._scan.has_crlf else text

    def digest(self, start: int, stop: int, seed: int) -> int:
        """64-bit digest of the bytes of a range."""
        with memoryview(self._content)[start:stop] as view:
            return xxhash.xxh3_64_intdigest(view, seed)

    def is_blank(self, start: int, stop: int) -> bool:
        """Whether a range has only white space."""
        return re.compile(rb"\s*").match(self._content, start, stop).end() == stop

    def documents(self, place: str, start: int, stop: int) -> Iterator[Document]:
        """Yields a range as documents of at most 4 MiB, without blank ones.

        The name of a document that is not UTF-8 gives its first invalid byte.

        Args:
          place: name of the range in messages, such as "line 3"; "" for the whole file.
          start: start of the range.
          stop: end of the range.
        """
        name = f"{self._name}, {place}" if place else self._name
        for begin, end in cut(self._content, start, stop, self._scan.newline):
            text = self.read(begin, end)
            if text.strip():
                where = "" if is_utf8(text) else f" ({self.bad_byte(begin, end)})"
                yield name + where, text

    def bad_byte(self, start: int, stop: int) -> str:
        """The first byte of a range that is not UTF-8, with its offset; "" if none."""
        try:
            self._content[start:stop].decode()
        except UnicodeDecodeError as error:
            at = start + error.start
            return f"byte 0x{self._content[at]:02x} at offset {at}"
        return ""

    def cut_near(self, position: int, reach: int) -> int:
        """The first line end within `reach` bytes, or else the next character."""
        position = min(max(position, self.begin), self.end)
        if position in (self.begin, self.end):
            return position
        newline = self._scan.newline
        found = self._content.find(newline, position, min(position + reach, self.end))
        return character_start(self._content, position) if found < 0 else found + 1

    @property
    def content(self) -> mmap.mmap | bytes:
        """The bytes that positions are offsets of."""
        return self._content

    @property
    def _line_end(self) -> bytes:
        return re.escape(self._scan.newline)

    @property
    def _blank_lines(self) -> bytes:
        is_cr = self._scan.newline == b"\r"
        return rb"(?:\r[ \t]*)+\r" if is_cr else rb"(?:\n[ \t\r]*)+\n"

    def _after(self, separator: bytes, position: int) -> int:
        found = re.compile(separator).search(self._content, position)
        return self.end if found is None else found.end()

    def _between(
        self, separator: bytes, begin: int | None, end: int
    ) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of the ranges between matches of a regex."""
        start = self.begin if begin is None else begin
        for match in re.compile(separator).finditer(self._content, start, end):
            yield start, match.start()
            start = match.end()
        yield start, end

    def _before_cr(self, start: int, stop: int) -> int:
        while stop > start and self._content[stop - 1] == ord("\r"):
            stop -= 1
        return stop


@contextlib.contextmanager
def open_text(file: Path, name: str | None = None) -> Iterator[OpenText]:
    """Opens a text file.

    Args:
      file: the file.
      name: its name in messages; the file's name if None.

    Raises:
      UserError: as in `scan_text`.
    """
    scan = scan_text(file)
    name = file.name if name is None else name
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(open(file, "rb"))
        if scan.encoding in _UTF16.values():
            decoded = stack.enter_context(tempfile.TemporaryFile())
            for chunk in _utf8_chunks(handle, scan.encoding, file):
                decoded.write(chunk)
            decoded.flush()
            handle = decoded
        if os.fstat(handle.fileno()).st_size == 0:
            yield OpenText(b"", name, scan)
            return
        content = stack.enter_context(
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        )
        yield OpenText(content, name, scan)


def cut(
    content: bytes | mmap.mmap, start: int, stop: int, newline: bytes = b"\n"
) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of parts of at most 4 MiB, cut at line ends if possible."""
    limit = source.DOCUMENT_BYTES
    while start < stop:
        end = stop
        if stop - start > limit:
            end = content.rfind(newline, start, start + limit) + 1
            end = end or character_start(content, start + limit - 3)
        yield start, end
        start = end


def is_utf8(text: bytes) -> bool:
    """Whether bytes are valid UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def character_start(content: bytes | mmap.mmap, position: int) -> int:
    """The first offset from `position` onwards at which a UTF-8 character starts."""
    position = min(max(position, 0), len(content))
    # A character has at most three continuation bytes.
    for start in range(position, position + 4):
        if start >= len(content) or content[start] & 0xC0 != 0x80:
            return start
    return position


@functools.lru_cache(maxsize=100_000)
def _scan(file: Path, size: int, modified: int) -> TextScan:
    del modified  # only a key of the cache
    digest = xxhash.xxh3_128()
    with open(file, "rb") as handle:
        head = handle.read(64)
        encoding = _encoding(head, file)
        handle.seek(0)
        chunks = _digested(handle, digest)
        if encoding in _UTF16.values():
            chunks = _decoded(chunks, encoding, file)
        text_size = nuls = 0
        has_cr = has_lf = has_crlf = ends_in_cr = False
        for chunk in chunks:
            text_size += len(chunk)
            nuls += chunk.count(0)
            has_lf = has_lf or b"\n" in chunk
            if b"\r" in chunk or ends_in_cr:
                across = ends_in_cr and chunk.startswith(b"\n")
                has_crlf = has_crlf or across or b"\r\n" in chunk
                has_cr = True
            ends_in_cr = chunk.endswith(b"\r")
    if nuls > _MAX_NUL_SHARE * text_size:
        raise UserError(
            f"{file} is not UTF-8 text: {nuls / text_size:.0%} of its bytes are NUL, "
            "as in UTF-16 without a byte order mark. Convert it with `iconv -f "
            "UTF-16LE -t UTF-8`, or leave it out."
        )
    return TextScan(
        digest=digest.hexdigest(),
        size=text_size - (len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0),
        encoding=encoding,
        newline=b"\r" if has_cr and not has_lf else b"\n",
        has_crlf=has_crlf,
    )


def _encoding(head: bytes, file: Path) -> str:
    """The encoding of a file by its first bytes; raises a UserError if not text."""
    for signature, (what, remedy) in SIGNATURES.items():
        if head.startswith(signature):
            raise UserError(f"{file} is {what}; {remedy}. Expected plain text.")
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UserError(
            f"{file} is UTF-32; convert it with `iconv -f UTF-32 -t UTF-8`."
        )
    for mark, encoding in _UTF16.items():
        if head.startswith(mark):
            return encoding
    return "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"


def _digested(handle, digest) -> Iterator[bytes]:
    while chunk := handle.read(_CHUNK):
        digest.update(chunk)
        yield chunk


def _utf8_chunks(handle, encoding: str, file: Path) -> Iterator[bytes]:
    return _decoded(iter(lambda: handle.read(_CHUNK), b""), encoding, file)


def _decoded(chunks: Iterator[bytes], encoding: str, file: Path) -> Iterator[bytes]:
    """Converts UTF-16 with a byte order mark to UTF-8 without one."""
    decoder = codecs.getincrementaldecoder(encoding)()
    first, position = True, 0
    try:
        for chunk in chunks:
            pending = len(decoder.getstate()[0])
            text = decoder.decode(chunk)
            position += len(chunk)
            yield (text.removeprefix("\ufeff") if first else text).encode()
            first = False
        pending = len(decoder.getstate()[0])
        yield decoder.decode(b"", final=True).encode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} begins with the byte order mark of UTF-16, but is not valid "
            f"UTF-16 at offset {position - pending + error.start}: {error.reason}."
        ) from None
