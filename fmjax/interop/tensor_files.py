"""The tensors of a model's files by name, read one at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import Stored, StoredTensor, numbers_of
from fmjax.interop.safetensors_writer import DTYPES


class TensorFiles:
    """The tensors of a folder's files, by name; read when needed.

    Attributes:
      folder: the folder, for messages.
    """

    def __init__(self, folder: Path, tensors: Stored):
        self.folder = folder
        self._found = dict(tensors)

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors by name."""
        return dict(self._found)

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._found)

    @property
    def num_elements(self) -> int:
        """The number of elements of all tensors, which the files' sizes limit."""
        return numbers_of(self._found)

    @property
    def dtype(self) -> str:
        """The name in `DTYPES` of most elements' dtype; float32 for wider ones.

        Tensors that were quantized do not count, unless there are no others.
        """
        kept = [t for t in self._found.values() if not t.dequantized]
        counts = dict.fromkeys(DTYPES, 0)
        for tensor in kept or self._found.values():
            name = tensor.dtype.name
            counts[name if name in DTYPES else "float32"] += tensor.size
        return max(counts, key=counts.get)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._found[name].shape

    def renamed(self, rename: Callable[[str], str]) -> "TensorFiles":
        """The same tensors with other names."""
        return TensorFiles(self.folder, {rename(n): t for n, t in self._found.items()})

    def check(self, name: str, shape: tuple[int, ...], longer: int | None = None):
        """Raises a UserError if a tensor has another shape or is not floating-point.

        Args:
          name: its name.
          shape: the expected shape.
          longer: an axis along which the tensor may be longer; None for none.
        """
        tensor = self._found[name]
        found = tensor.shape
        if longer is not None and len(found) == len(shape) and found != shape:
            cut = (*found[:longer], min(found[longer], shape[longer]))
            found = (*cut, *found[longer + 1 :])
        if found != shape:
            raise UserError(
                f"{self.folder}: {name} has shape {tensor.shape}; config.json makes it "
                f"{shape}."
            )
        if not _is_float(tensor):
            raise UserError(
                f"{self.folder}: {name} is stored as {tensor.dtype.name}; expected a "
                "floating-point type."
            )

    def read(
        self, name: str, shape: tuple[int, ...], longer: int | None = None
    ) -> np.ndarray:
        """A tensor as float32, cut to a shape; raises a UserError as `check` does."""
        self.check(name, shape, longer)
        array = self._found[name].read()[tuple(map(slice, shape))]
        return array.astype(np.float32, copy=False)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors are equal."""
        return np.array_equal(self._found[name].read(), self._found[other].read())

    def is_zero(self, name: str) -> bool:
        """Whether all elements of a tensor are zero."""
        return not np.any(self._found[name].read().astype(np.float32))


def _is_float(tensor: StoredTensor) -> bool:
    # Those of ml_dtypes are of the kind "V" or "f".
    return tensor.dtype.kind == "f" or "float" in tensor.dtype.name
