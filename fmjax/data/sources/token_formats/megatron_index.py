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
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax.errors import UserError

_MAPPED, _EARLIER = b"MMIDIDX\0\0", b"TNTIDX\0\0"
# Codes 6 and 7 are floats: in the two layouts, of other widths.
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = (6, 7)


class MegatronIndex(NamedTuple):
    """The content of a .idx.

    Attributes:
      dtype: of the ids.
      starts: first token of each sequence in the .bin, int64 [S].
      lengths: tokens of each sequence, int64 [S].
      documents: first sequence of each document, and their number S, int64 [D + 1].
    """

    dtype: np.dtype
    starts: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray


def read_index(file: Path, size: int) -> MegatronIndex:
    """Reads an index and checks it against its .bin.

    Args:
      file: the .idx.
      size: bytes of the .bin.

    Raises:
      UserError: it cannot be read, is truncated or damaged, or is of another .bin.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    if content.startswith(_MAPPED):
        index = _mapped(file, content)
    elif content.startswith(_EARLIER):
        index = _earlier(file, content)
    else:
        raise UserError(
            f"{file} is no index of Megatron: it begins with {content[:9]!r}, expected "
            f"{_MAPPED!r} or {_EARLIER!r}. If its .bin is a flat stream of ids, move "
            "the .idx away."
        )
    _check(file, index, size)
    return index


def _mapped(file: Path, content: bytes) -> MegatronIndex:
    version, code, sequences, documents = _numbers(file, content, "<QBQQ", 9)
    dtype = _dtype(file, version, code)
    begin = 9 + struct.calcsize("<QBQQ")
    expected = begin + sequences * (4 + 8) + documents * 8
    # Of data of several modalities there is a mode for each sequence.
    _check_size(file, content, (expected, expected + sequences))
    lengths = np.frombuffer(content, "<i4", sequences, begin).astype(np.int64)
    begin += sequences * 4
    offsets = np.frombuffer(content, "<i8", sequences, begin)
    begin += sequences * 8
    if (offsets % dtype.itemsize).any():
        raise _damaged(file, "an offset is no multiple of the bytes of an id")
    found = np.frombuffer(content, "<i8", documents, begin)
    return MegatronIndex(dtype, offsets // dtype.itemsize, lengths, found)


def _earlier(file: Path, content: bytes) -> MegatronIndex:
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
    if sizes != sequences or (np.diff(dimensions) != 1).any():
        raise _damaged(file, "a sequence has several dimensions")
    return MegatronIndex(dtype, offsets[:-1], lengths, found)


def _numbers(file: Path, content: bytes, form: str, start: int) -> tuple[int, ...]:
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


def _check_size(file: Path, content: bytes, expected: tuple[int, ...]) -> None:
    if len(content) not in expected:
        raise _damaged(file, f"it has {len(content):,} bytes; expected {expected[0]:,}")


def _check(file: Path, index: MegatronIndex, size: int) -> None:
    tokens = size // index.dtype.itemsize
    if len(index.starts):
        least = min(int(index.starts.min()), int(index.lengths.min()))
        # Separately, since the sum of damaged numbers may overflow.
        most = max(int(index.starts.max()), int(index.lengths.max()))
        if least < 0 or most > tokens or (index.starts + index.lengths).max() > tokens:
            raise UserError(
                f"{file}: a sequence ends beyond the {tokens:,} tokens of "
                f"{file.with_suffix('.bin').name}, so one of the two files is "
                "truncated, damaged or of another pair."
            )
    documents = index.documents
    ordered = len(documents) and not documents[0] and (np.diff(documents) >= 0).all()
    if not ordered or documents[-1] != len(index.starts):
        raise _damaged(
            file, f"documents that are not those of {len(index.starts)} sequences"
        )


def _damaged(file: Path, found: str) -> UserError:
    return UserError(f"{file} is truncated or damaged: {found}.")
