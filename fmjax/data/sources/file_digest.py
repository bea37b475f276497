"""Digests of files, which identify caches and reveal changed data."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import xxhash


def digest_file(file: Path) -> str:
    """128-bit digest of a file's bytes; computed again if its size or time changes."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns)


def digest_files(
    files: Sequence[Path], digest: Callable[[Path], str] = digest_file
) -> str:
    """Digest of the contents of files and of their names in their common folder.

    Args:
      files: at least one absolute path.
      digest: the digest of a file's content.
    """
    root = os.path.commonpath([file.parent for file in files])
    total = xxhash.xxh3_128()
    for file in files:
        total.update(f"{os.path.relpath(file, root)}\0{digest(file)}\0".encode())
    return total.hexdigest()


@functools.lru_cache(maxsize=100_000)
def _digest(file: Path, size: int, modified: int) -> str:
    del size, modified  # only keys of the cache
    digest = xxhash.xxh3_128()
    with open(file, "rb") as handle:
        while chunk := handle.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
