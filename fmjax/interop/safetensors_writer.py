"""Writing safetensors files one tensor at a time."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from fmjax.errors import UserError, suggest

# The package ml_dtypes adds bfloat16 to NumPy.
DTYPES = {
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def check_dtype(dtype: str | None) -> None:
    """Raises a UserError for a dtype that is neither in `DTYPES` nor None."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(
            f"dtype = {dtype!r}: expected one of {', '.join(DTYPES)}."
            f"{suggest(dtype, DTYPES)}"
        )


class Tensor(NamedTuple):
    """A tensor to write.

    Attributes:
      name: its name in the file.
      shape: its shape.
      make: returns the tensor when it is written.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def write(
    folder: Path, tensors: Iterable[Tensor], dtype: str, max_shard_bytes: int
) -> None:
    """Writes tensors in order and holds only one of them at a time.

    Args:
      folder: gets model.safetensors or, above the limit, shards and their index.
      tensors: the tensors.
      dtype: a name in `DTYPES`.
      max_shard_bytes: maximum bytes of the tensors of a file; a larger tensor gets a
        file of its own.
    """
    shards: list[list[Tensor]] = [[]]
    size = total = 0
    for tensor in tensors:
        more = _bytes(tensor, dtype)
        if shards[-1] and size + more > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size, total = size + more, total + more
    if len(shards) == 1:
        write_file(folder / _SINGLE, shards[0], dtype)
        return
    files = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard, dtype)
        files |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_file(file: Path, tensors: list[Tensor], dtype: str) -> None:
    """Writes one safetensors file, and holds only one tensor at a time.

    Args:
      file: the file.
      tensors: in order.
      dtype: a name in `DTYPES`.
    """
    # The library's writer would hold all tensors.
    code, kind = DTYPES[dtype]
    header: dict = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + _bytes(tensor, dtype)
        header[tensor.name] = {
            "dtype": code,
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.make(), dtype=kind)
            out.write(array.reshape(-1).view(np.uint8).data)


def _bytes(tensor: Tensor, dtype: str) -> int:
    return int(np.prod(tensor.shape)) * np.dtype(DTYPES[dtype][1]).itemsize
