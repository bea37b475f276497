"""Safetensors files, mapped into memory."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import StoredTensor

# Codes of the format. The package ml_dtypes adds those that NumPy does not have.
CODES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
      UserError: it is not such a file, or holds numbers of a dtype that is not known.
    """
    try:
        # The library checks that tensors fill the file and do not overlap.
        with safe_open(file, framework="np"):
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    header.pop("__metadata__", None)
    return {
        name: _stored(file, 8 + length, name, info) for name, info in header.items()
    }


def _stored(file: Path, start: int, name: str, info: dict) -> StoredTensor:
    if info["dtype"] not in CODES:
        raise UserError(
            f"{file}: {name} is stored as {info['dtype']}; expected one of "
            f"{', '.join(CODES)}."
        )
    shape, dtype = tuple(info["shape"]), np.dtype(CODES[info["dtype"]])

    def read() -> np.ndarray:
        if 0 in shape:
            return np.zeros(shape, dtype)
        # Opened for each: a file that stays mapped keeps in memory what was read of it.
        offset = start + info["data_offsets"][0]
        # Mapped as bytes, for `memmap` does not know the dtypes of ml_dtypes by name.
        count = info["data_offsets"][1] - info["data_offsets"][0]
        mapped = np.memmap(file, np.uint8, "r", offset, (count,))
        return mapped.view(dtype).reshape(shape)

    return StoredTensor(shape, dtype, read)
