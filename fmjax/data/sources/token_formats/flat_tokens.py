"""Flat token streams: nanoGPT's .bin of ids alone, and llm.c's with a header."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmjax.errors import UserError

# llm.c (karpathy/llm.c, dev/data/data_common.py): 256 int32, of which the first three
# are a magic number, a version and the number of tokens.
_HEADER_BYTES = 1024
_MAGIC = {20240520: "<u2", 20240801: "<u4"}
# Tokens that are searched for ends of documents at once.
_WINDOW = 1 << 20
# Tokens from which it is told that a stream has wider ids than it is read with.
_LOOKED_AT = 10_000


def open_flat(file: Path, dtype: str, binding: str) -> np.ndarray:
    """The ids of a file, memory-mapped, [N].

    Args:
      file: the file.
      dtype: of its ids, "uint16", "uint32" or "int32"; a header of llm.c tells it
        itself.
      binding: gin name of the field with the dtype, for messages.

    Raises:
      UserError: the file cannot be read, is truncated, or has ids of another dtype.
    """
    try:
        with open(file, "rb") as content:
            head = content.read(12).ljust(12, b"\0")
            size = content.seek(0, 2)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    start, kind = 0, np.dtype(dtype).newbyteorder("<")
    magic, _, count = np.frombuffer(head, "<i4").tolist()
    if magic in _MAGIC:
        start, kind = _HEADER_BYTES, np.dtype(_MAGIC[magic])
        expected = start + count * kind.itemsize
        if size != expected:
            raise UserError(
                f"{file} has {size:,} bytes; expected {expected:,}, since its header "
                f"tells of {count:,} tokens. Copy or download it again."
            )
    if (size - start) % kind.itemsize:
        raise UserError(
            f"{file} has {size:,} bytes, which is no whole number of ids of "
            f"{kind.itemsize} bytes. It is truncated, or {binding} = {dtype!r} is "
            "another dtype than its own."
        )
    if size == start:
        return np.zeros(0, kind)
    ids = np.memmap(file, kind, "r", offset=start)
    if not start and kind.itemsize == 2:
        _check_width(file, ids[:_LOOKED_AT], binding)
    return ids


def documents_between(
    ids: np.ndarray, start: int, stop: int, eos_id: int
) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of the documents in a range, without EOS and empty ones.

    Args:
      ids: the stream, [N].
      start: start of the range.
      stop: end of the range.
      eos_id: id between documents.
    """
    begin = start
    for window in range(start, stop, _WINDOW):
        for at in _ends(ids, window, min(window + _WINDOW, stop), eos_id):
            if at > begin:
                yield begin, at
            begin = at + 1
    if begin < stop:
        yield begin, stop


def next_document(ids: np.ndarray, start: int, eos_id: int) -> int:
    """Where the first document starts that does not start before `start`."""
    for window in range(max(start - 1, 0), len(ids), _WINDOW):
        for at in _ends(ids, window, min(window + _WINDOW, len(ids)), eos_id):
            return at + 1
    return len(ids)


def _ends(ids: np.ndarray, start: int, stop: int, eos_id: int) -> list[int]:
    return (start + np.flatnonzero(ids[start:stop] == eos_id)).tolist()


def _check_width(file: Path, ids: np.ndarray, binding: str) -> None:
    """Refuses ids of 32 bits read as 16: every second one would be 0."""
    if len(ids) >= 8 and not ids[1::2].any() and ids[::2].any():
        raise UserError(
            f"{file}: every second id is 0, as if ids of 32 bits were read as 16; bind "
            f"{binding}='uint32'."
        )
