"""A tensor in a file: what its header says, and a function that reads it."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, which is read when asked for.

    Attributes:
      shape: its shape.
      dtype: dtype of the values that `read` returns; those of ml_dtypes too.
      read: returns the tensor, which may be mapped from the file and not writable.
      storage: what identifies the numbers in the files; views of one share it. None for
        a tensor of its own.
      numbers: how many numbers the files hold for it; None for those of its shape.
      dequantized: whether `read` computes the values from quantized ones.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    storage: Hashable = None
    numbers: int | None = None
    dequantized: bool = False

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


Stored = Mapping[str, StoredTensor]


def numbers_of(tensors: Stored) -> int:
    """How many numbers files hold for tensors: those that are shared count once."""
    counts = {
        name if tensor.storage is None else tensor.storage: (
            tensor.size if tensor.numbers is None else tensor.numbers
        )
        for name, tensor in tensors.items()
    }
    return sum(counts.values())
