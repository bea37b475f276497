"""Digests of files, which identify caches and reveal changed data."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash

from fmjax.data.sources.data_files import (
    common_folder,
    file_version,
    open_ranges,
    relative_name,
)
from fmjax.storage.paths import is_bucket

_is_sampled = contextvars.ContextVar("sampled", default=False)
# Files of more bytes are sampled, in so many blocks of so many bytes.
_LARGE_BYTES, _BLOCKS, _BLOCK_BYTES = 64 << 20, 64, 1 << 16


@contextlib.contextmanager
def sampled_digests() -> Iterator[None]:
    """Context manager: digests of files of more than 64 MiB are of samples of them.

    For data that is too large to be read as a whole before it is used.
    """
    before = _is_sampled.set(True)
    try:
        yield
    finally:
        _is_sampled.reset(before)


def are_sampled() -> bool:
    """Whether it is within `sampled_digests`."""
    return _is_sampled.get()


def digest_file(file: Path) -> str:
    """Digest that tells whether a file has changed; computed once for its version.

    Of a local file it is that of its bytes. Of an object of a bucket it is that of its
    size and version, so that it is not read for it: equal objects have different ones,
    for which see `content_digest`.
    """
    if is_bucket(file):
        return xxhash.xxh3_128_hexdigest(f"object {file_version(file)}".encode())
    return content_digest(file)


def content_digest(file: Path) -> str:
    """128-bit digest of a file's bytes, equal for equal files wherever they are.

    An object of a bucket is read for it.

    Raises:
      OSError: it cannot be read.
    """
    version = file_version(file)
    if are_sampled() and version.size > _LARGE_BYTES:
        return _sampled_digest(file, *version)
    return _digest(file, *version)


def digest_files(
    files: Sequence[Path], digest: Callable[[Path], str] = digest_file
) -> str:
    """Digest of the contents of files and of their names in their common folder.

    Args:
      files: at least one absolute path.
      digest: the digest of a file's content.
    """
    root = common_folder(files)
    total = xxhash.xxh3_128()
    for file in files:
        total.update(f"{relative_name(file, root)}\0{digest(file)}\0".encode())
    return total.hexdigest()


@functools.lru_cache(maxsize=100_000)
def _sampled_digest(file: Path, size: int, modified: int | str) -> str:
    """Digest of the size, and of blocks at the beginning, the end and between."""
    del modified  # only a key of the cache
    digest = xxhash.xxh3_128(f"sampled {size}".encode())
    with open_ranges(file) as handle:
        for number in range(_BLOCKS):
            handle.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
            digest.update(handle.read(_BLOCK_BYTES))
    return digest.hexdigest()


@functools.lru_cache(maxsize=100_000)
def _digest(file: Path, size: int, modified: int | str) -> str:
    del size, modified  # only keys of the cache
    digest = xxhash.xxh3_128()
    with open_ranges(file) as handle:
        while chunk := handle.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
