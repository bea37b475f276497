"""Digests of files, which name caches and tell whether data has changed."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import xxhash


def digest_file(file: Path) -> str:
    """128-bit digest of a file's bytes, computed once per size and time of the file."""
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns)


def digest_files(
    files: Sequence[Path], digest: Callable[[Path], str] = digest_file
) -> str:
    """Digest of contents, and of names relative to the folder that holds all files.

    Args:
      files: at least one, absolute.
      digest: of one file's bytes.
    """
    root = os.path.commonpath([file.parent for file in files])
    total = xxhash.xxh3_128()
    for file in files:
        total.update(f"{os.path.relpath(file, root)}\0{digest(file)}\0".encode())
    return total.hexdigest()


@functools.lru_cache(maxsize=100_000)
def _digest(file: Path, size: int, modified: int) -> str:
    del size, modified  # They key the memo.
    digest = xxhash.xxh3_128()
    with open(file, "rb") as handle:
        while chunk := handle.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
