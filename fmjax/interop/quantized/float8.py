"""Weights of eight floating-point bits, and a scale for each block, row or tensor.

DeepSeek-V3 (2024) multiplies blocks of 128 × 128 by `weight_scale_inv`; others have one
scale a row or a tensor, in `weight_scale`.
"""

import numpy as np

from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.quantized.parts import Parts, Settings, modules

ENDS = ("weight", "input_scale", "weight_zero_point")
_MARKS = ("weight_scale_inv", "weight_scale")


def read(
    tensors: dict[str, StoredTensor], settings: Settings
) -> dict[str, StoredTensor]:
    """Takes quantized weights out of `tensors` and returns them dequantized."""
    block = settings.get("weight_block_size")
    found = {}
    for mark in _MARKS:
        for parts in modules(tensors, mark, ENDS):
            found[f"{parts.module}weight"] = _weight(parts, mark, block)
    return found


def _weight(parts: Parts, mark: str, block: object) -> StoredTensor:
    weight, scale = parts["weight"], parts[mark]
    parts.expect(
        len(weight.shape) == 2 and "float8" in weight.dtype.name,
        "a matrix of float8 and its scales",
    )
    sizes = block_sizes(weight.shape, scale.shape, block)
    parts.expect(sizes is not None, "a scale for each block, row, or for the whole")

    def dequantize() -> np.ndarray:
        values = weight.read().astype(np.float32)
        return times_blocks(values, scale.read().astype(np.float32), sizes)

    dtype = np.dtype(np.float32)
    return StoredTensor(weight.shape, dtype, dequantize, dequantized=True)


def block_sizes(
    shape: tuple[int, ...], scales: tuple[int, ...], block: object
) -> tuple[int, int] | None:
    """Rows and columns of a block; None if the scales do not fit.

    Args:
      shape: of the weight.
      scales: shape of the scales.
      block: sizes of a block, as a config states them, or None.
    """
    if int(np.prod(scales)) == 1:
        return shape[0], shape[1]
    if len(scales) == 1:
        scales = (scales[0], 1)
    if len(scales) != 2:
        return None
    # A block at an edge may be smaller; then only the config tells the size, or it is
    # transformers' default.
    is_stated = isinstance(block, (list, tuple)) and len(block) == 2
    tried = [tuple(block) if is_stated else (128, 128)]
    if all(m > 0 and n % m == 0 for n, m in zip(shape, scales, strict=True)):
        tried.append(tuple(n // m for n, m in zip(shape, scales, strict=True)))
    for sizes in tried:
        valid = all(type(size) is int and size > 0 for size in sizes)
        if valid and tuple(-(-n // s) for n, s in zip(shape, sizes)) == scales:
            return sizes[0], sizes[1]
    return None


def times_blocks(
    values: np.ndarray, scale: np.ndarray, sizes: tuple[int, int]
) -> np.ndarray:
    """Multiplies blocks of a matrix by their scales, in place."""
    rows, columns = sizes
    scale = scale.reshape(
        -(-values.shape[0] // rows) if values.size else 0,
        -(-values.shape[1] // columns) if values.size else 0,
    )
    if scale.shape[1] == 1:
        values *= np.repeat(scale, rows, axis=0)[: values.shape[0]]
        return values
    for i in range(scale.shape[0]):
        band = values[i * rows : (i + 1) * rows]
        band *= np.repeat(scale[i], columns)[: values.shape[1]]
    return values
