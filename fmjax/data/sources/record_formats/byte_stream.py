"""Files as streams of bytes, decompressed: .gz, .bz2, .xz, .zst."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fmjax.data.sources.data_files import open_binary
from fmjax.data.sources.find_files import without_shard
from fmjax.data.sources.text_reader import SIGNATURES
from fmjax.errors import UserError

_BUFFER = 1 << 16


class _Compression(NamedTuple):
    """A compression: its name, and the first bytes of its files."""

    name: str
    magic: bytes


COMPRESSIONS = {
    ".gz": _Compression("gzip", b"\x1f\x8b"),
    ".bz2": _Compression("bzip2", b"BZh"),
    ".xz": _Compression("xz", b"\xfd7zXZ\0"),
    ".zst": _Compression("Zstandard", b"\x28\xb5\x2f\xfd"),
}
# A Zstandard file may begin with a frame of metadata, as those of pzstd do.
_SKIPPABLE = tuple(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))


class ByteStream(io.BufferedReader):
    """The decompressed content of a file, without a byte order mark."""

    def __init__(self, content, position):
        super().__init__(content, _BUFFER)
        self._position = position

    def file_position(self) -> int:
        """How many bytes of the file have been read, buffers included."""
        return self._position()


@contextlib.contextmanager
def open_bytes(
    file: Path, is_text: bool = True, start: int = 0, stop: int | None = None
) -> Iterator[ByteStream]:
    """Opens a file, decompressed by its suffix.

    Args:
      file: the file.
      is_text: whether its content must be text.
      start: where to read from; the beginning of the file is not looked at then.
      stop: where the part ends that is read; None if it is not known.

    Raises:
      UserError: the file cannot be read, is not compressed as its suffix says, is
        truncated or damaged, or its content is compressed again, not text, or UTF-16.
        Raised in the body of the `with` statement too, when it reads.
    """
    compression = COMPRESSIONS.get(last_suffix(file))
    with _explained(file, compression), contextlib.ExitStack() as stack:
        raw = stack.enter_context(open_binary(file, stop))
        raw.seek(start)
        if compression is not None:
            _check_magic(raw.peek(4), file, compression)
        content = stack.enter_context(_decompressed(raw, file))
        stream = stack.enter_context(ByteStream(content, raw.tell))
        if is_text and not start:
            head = stream.peek(64)
            _check_text(head, file)
            if head.startswith(codecs.BOM_UTF8):
                stream.read(len(codecs.BOM_UTF8))
        yield stream


def last_suffix(file: Path) -> str:
    """The suffix of a file, in lower case, before the shard if there is one."""
    suffix = Path(without_shard(file.name.lower())).suffix
    return ".gz" if suffix == ".tgz" else suffix


def _decompressed(raw: io.BufferedReader, file: Path):
    match last_suffix(file):
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".bz2":
            return bz2.BZ2File(raw)
        case ".xz":
            return lzma.LZMAFile(raw)
        case ".zst":
            import pyarrow as pa

            return pa.CompressedInputStream(raw, "zstd")
    return contextlib.nullcontext(raw)


def _check_magic(head: bytes, file: Path, compression: _Compression) -> None:
    magic = compression.magic
    if not head or head.startswith(magic):
        return
    if magic == COMPRESSIONS[".zst"].magic and head.startswith(_SKIPPABLE):
        return
    raise UserError(
        f"{file} is not compressed by {compression.name}: it begins with {head[:4]!r}, "
        f"expected {magic!r}. Without compression it would be {file.stem}."
    )


def _check_text(head: bytes, file: Path) -> None:
    for magic, (what, _) in SIGNATURES.items():
        if head.startswith(magic):
            raise UserError(
                f"the content of {file} is {what}; expected text. Its suffix must name "
                "its format and its compression, as in a.jsonl.gz or a.parquet."
            )
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if head.startswith((*marks, codecs.BOM_UTF32_BE)):
        raise UserError(
            f"{file} has the byte order mark of UTF-16 or UTF-32; expected UTF-8. "
            "Convert it with `iconv -f UTF-16 -t UTF-8`."
        )


@contextlib.contextmanager
def _explained(file: Path, compression: _Compression | None) -> Iterator[None]:
    """Errors of reading and decompressing as UserErrors."""
    try:
        yield
    except EOFError:
        raise _truncated(file, compression) from None
    except (OSError, zlib.error, lzma.LZMAError) as error:
        if "Truncated compressed stream" in str(error):
            raise _truncated(file, compression) from None
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file} cannot be read: {error.strerror}.") from error
        raise UserError(
            f"{file} is damaged and cannot be decompressed: {error}."
        ) from error


def _truncated(file: Path, compression: _Compression | None) -> UserError:
    name = compression.name if compression else ""
    return UserError(
        f"{file} is truncated: it ends in the middle of its {name} data. Copy or "
        "download it again."
    )
