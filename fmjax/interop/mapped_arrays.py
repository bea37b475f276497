"""Arrays in files that are mapped into memory, for models as large as the memory."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Makes an array of zeros of a shape and dtype.
Zeros = Callable[[tuple[int, ...], Any], np.ndarray]


def zeros_in_memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros aligned to 64 bytes, which JAX uses without a copy."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def zeros_in(folder: Path) -> Zeros:
    """Makes arrays in files of a folder, which the system may write out and drop.

    The folder may be removed while its arrays are in use. On a file system that cannot
    map files they are made in memory.

    Args:
      folder: an empty one.
    """
    numbers = itertools.count()

    def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        file = folder / str(next(numbers))
        try:
            mapped = np.memmap(file, np.dtype(dtype), "w+", shape=shape)
        except OSError:
            return zeros_in_memory(shape, dtype)
        return mapped.view(np.ndarray)

    return zeros
