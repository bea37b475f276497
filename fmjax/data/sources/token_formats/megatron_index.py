"""Megatron's .idx, which tells the sequences and documents of the .bin beside it.

Two layouts: MMIDIDX of today's Megatron-LM (megatron/core/datasets/indexed_dataset.py,
whose .bin is memory-mapped), and TNTIDX of earlier ones and of fairseq
(megatron/data/indexed_dataset.py). Numbers are little-endian:

  MMIDIDX\\0\\0 | version u64 = 1 | dtype code u8 | S u64 | D + 1 u64
    | lengths i32 [S] | byte offsets i64 [S] | documents i64 [D + 1] | (modes i8 [S])
  TNTIDX\\0\\0 | version u64 = 1 | dtype code u64 | bytes of an id u64 | S u64 | L u64
    | D + 1 u64 | dimensions i64 [S + 1] | offsets i64 [S + 1] | lengths i64 [L]
    | documents i64 [D + 1]

Document d has the sequences documents[d] to documents[d + 1].
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax.errors import UserError

_MAPPED, _EARLIER = b"MMIDIDX\0\0", b"TNTIDX\0\0"
# Codes 6 and 7 are floats: in the two layouts, of other widths.
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = (6, 7)
# Numbers that are checked at once.
_CHUNK = 1 << 20


class MegatronIndex(NamedTuple):
    """The content of a .idx, memory-mapped.

    Attributes:
      dtype: of the ids.
      offsets: where each sequence begins in the .bin, in units, int64 [S].
      unit: bytes of a unit.
      lengths: tokens of each sequence, int32 or int64 [S].
      documents: first sequence of each document, and their number S, int64 [D + 1].
    """

    dtype: np.dtype
    offsets: np.ndarray
    unit: int
    lengths: np.ndarray
    documents: np.ndarray

    def ranges(self, document: int) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of a document's sequences, in tokens of the .bin."""
        for sequence in range(*map(int, self.documents[document : document + 2])):
            start = int(self.offsets[sequence]) * self.unit // self.dtype.itemsize
            yield start, start + int(self.lengths[sequence])


def read_index(file: Path, size: int) -> MegatronIndex:
    """Opens an index and checks it against its .bin.

    Args:
      file: the .idx.
      size: bytes of the .bin.

    Raises:
      UserError: it cannot be read, is truncated or damaged, or is of another .bin.
    """
    try:
        is_empty = not file.stat().st_size
        content = np.zeros(0, "u1") if is_empty else np.memmap(file, "u1", "r")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    head = content[: len(_MAPPED)].tobytes()
    if head == _MAPPED:
        index = _mapped(file, content)
    elif head.startswith(_EARLIER):
        index = _earlier(file, content)
    else:
        raise UserError(
            f"{file} is no index of Megatron: it begins with {head!r}; expected "
            f"{_MAPPED!r} or {_EARLIER!r}. If its .bin is a flat stream of ids, move "
            "the .idx away."
        )
    _check_sequences(file, index, size)
    _check_documents(file, index)
    return index


def _mapped(file: Path, content: np.ndarray) -> MegatronIndex:
    version, code, sequences, documents = _numbers(file, content, "<QBQQ", 9)
    dtype = _dtype(file, version, code)
    begin = 9 + struct.calcsize("<QBQQ")
    expected = begin + sequences * (4 + 8) + documents * 8
    # Of data of several modalities there is a mode for each sequence.
    _check_size(file, content, (expected, expected + sequences))
    lengths = np.frombuffer(content, "<i4", sequences, begin)
    begin += sequences * 4
    offsets = np.frombuffer(content, "<i8", sequences, begin)
    begin += sequences * 8
    found = np.frombuffer(content, "<i8", documents, begin)
    return MegatronIndex(dtype, offsets, 1, lengths, found)


def _earlier(file: Path, content: np.ndarray) -> MegatronIndex:
    form = "<QQQQQQ"
    version, code, width, sequences, sizes, documents = _numbers(file, content, form, 8)
    dtype = _dtype(file, version, code)
    if width != dtype.itemsize:
        raise _damaged(file, f"ids of {width} bytes, but dtype {dtype}")
    begin = 8 + struct.calcsize(form)
    counts = (sequences + 1, sequences + 1, sizes, documents)
    _check_size(file, content, (begin + 8 * sum(counts),))
    arrays = []
    for count in counts:
        arrays.append(np.frombuffer(content, "<i8", count, begin))
        begin += 8 * count
    dimensions, offsets, lengths, found = arrays
    one_each = all((np.diff(part) == 1).all() for part in _chunks(dimensions, 1))
    if sizes != sequences or not one_each:
        raise _damaged(file, "a sequence has several dimensions")
    return MegatronIndex(dtype, offsets[:-1], dtype.itemsize, lengths, found)


def _numbers(file: Path, content: np.ndarray, form: str, start: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, content, start)
    except struct.error:
        raise _damaged(file, f"it has only {len(content)} bytes") from None


def _dtype(file: Path, version: int, code: int) -> np.dtype:
    if version != 1:
        raise _damaged(file, f"version {version}; expected 1")
    if code in _FLOATS:
        raise UserError(f"{file}: dtype code {code} is of floats; expected ids.")
    if code not in _DTYPES:
        known = ", ".join(f"{n} ({np.dtype(name)})" for n, name in _DTYPES.items())
        raise _damaged(file, f"dtype code {code}; expected one of {known}")
    return np.dtype(_DTYPES[code])


def _check_size(file: Path, content: np.ndarray, expected: tuple[int, ...]) -> None:
    if len(content) not in expected:
        raise _damaged(file, f"it has {len(content):,} bytes; expected {expected[0]:,}")


def _check_sequences(file: Path, index: MegatronIndex, size: int) -> None:
    width, unit = index.dtype.itemsize, index.unit
    for offsets, lengths in zip(_chunks(index.offsets), _chunks(index.lengths)):
        # Before they are multiplied and added, since damaged numbers may overflow.
        within = 0 <= offsets.min() and offsets.max() <= size // unit
        within = within and 0 <= lengths.min() and lengths.max() <= size // width
        ends = offsets * unit + lengths.astype(np.int64) * width if within else None
        if ends is None or ends.max() > size:
            raise UserError(
                f"{file}: a sequence ends beyond the {size:,} bytes of "
                f"{file.with_suffix('.bin').name}, so one of the two files is "
                "truncated, damaged or of another pair."
            )
        if (offsets * unit % width).any():
            raise _damaged(file, "an offset is no multiple of the bytes of an id")


def _check_documents(file: Path, index: MegatronIndex) -> None:
    documents = index.documents
    ordered = len(documents) and not documents[0]
    ordered = ordered and all((np.diff(p) >= 0).all() for p in _chunks(documents, 1))
    if not ordered or documents[-1] != len(index.offsets):
        raise _damaged(
            file, f"documents that are not those of {len(index.offsets)} sequences"
        )


def _chunks(array: np.ndarray, overlap: int = 0) -> Iterator[np.ndarray]:
    """Parts of an array, so that checks take little memory."""
    for start in range(0, len(array), _CHUNK):
        yield array[start : start + _CHUNK + overlap]


def _damaged(file: Path, found: str) -> UserError:
    return UserError(f"{file} is truncated or damaged: {found}.")
