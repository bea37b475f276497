"""Safetensors files of a folder, read and written one tensor at a time."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from fmjax.errors import UserError

# The package ml_dtypes adds bfloat16 to NumPy.
_FLOATS = ("F64", "F32", "F16", "BF16")
DTYPES = {
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class TensorFiles:
    """The tensors of a folder's safetensors files, by name; read when needed."""

    def __init__(self, folder: Path):
        """Opens model.safetensors, or the shards of model.safetensors.index.json."""
        self.folder = folder
        self._found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        for file in _files(folder):
            try:
                with safe_open(file, framework="np") as opened:
                    for name in opened.keys():  # noqa: SIM118
                        info = opened.get_slice(name)
                        shape, dtype = tuple(info.get_shape()), info.get_dtype()
                        self._found[name] = file, shape, dtype
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} cannot be read: {error}.") from error

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._found)

    @property
    def num_elements(self) -> int:
        """The number of elements of all tensors, which headers and file sizes limit."""
        return sum(math.prod(shape) for _, shape, _ in self._found.values())

    @property
    def dtype(self) -> str:
        """The name in `DTYPES` of most elements' dtype; float32 for wider ones."""
        counts = dict.fromkeys(DTYPES, 0)
        codes = {code: name for name, (code, _) in DTYPES.items()}
        for _, shape, code in self._found.values():
            counts[codes.get(code, "float32")] += math.prod(shape)
        return max(counts, key=counts.get)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises a UserError if a tensor has another shape or is not floating-point."""
        _, found, dtype = self._found[name]
        if found != shape:
            raise UserError(
                f"{self.folder}: {name} has shape {found}; config.json makes it "
                f"{shape}."
            )
        if dtype not in _FLOATS:
            raise UserError(
                f"{self.folder}: {name} is stored as {dtype}; expected one of "
                f"{', '.join(_FLOATS)}."
            )

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as float32; raises a UserError as `check` does."""
        self.check(name, shape)
        return self._tensor(name).astype(np.float32, copy=False)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors are equal."""
        return np.array_equal(self._tensor(name), self._tensor(other))

    def _tensor(self, name: str) -> np.ndarray:
        # A file that stays open stays mapped, and what was read of it in memory.
        with safe_open(self._found[name][0], framework="np") as opened:
            return opened.get_tensor(name)


class Tensor(NamedTuple):
    """A tensor to write.

    Attributes:
      name: its name in the file.
      shape: its shape.
      make: returns the tensor when it is written.
    """

    name: str
    shape: tuple[int, ...]
    make: object


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
        _write_file(folder / _SINGLE, shards[0], dtype)
        return
    files = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard, dtype)
        files |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(file: Path, tensors: list[Tensor], dtype: str) -> None:
    """Writes a safetensors file; the library's writer would hold all tensors."""
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


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors files: one, or those that an index names."""
    index = folder / _INDEX
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not index.is_file():
        raise UserError(
            f"{folder}: no model.safetensors. Only safetensors are read, never pickled "
            "files (.bin), which can run code; save_pretrained writes them."
        )
    try:
        named = json.loads(index.read_bytes())["weight_map"].values()
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        raise UserError(f"{index} is damaged: {error!r}.") from error
    for name in named:
        # Only plain names, so that an untrusted index cannot read other files.
        plain = isinstance(name, str) and not re.search(r"[/\\\0]|.{200}", name)
        if not plain or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names {name!r}; expected a .safetensors file of the folder."
            )
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, which {index.name} names.")
    return [folder / name for name in sorted(set(named))]
