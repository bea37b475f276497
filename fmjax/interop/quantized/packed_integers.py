"""Small integers in larger ones: their places in 32 bits, and groups of a scale."""

import numpy as np

Ints = np.ndarray


def unpack(words: Ints, bits: int, axis: int) -> Ints:
    """The integers in int32 words, the first in the lowest bits, uint8.

    Args:
      words: int32, of any shape.
      bits: bits of an integer, at most 8; one may be in two words.
      axis: the axis along which a word's integers follow each other.
    """
    words = np.ascontiguousarray(np.moveaxis(words, axis, -1)).view(np.uint32)
    if 32 % bits:
        each = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
        count = each.shape[-1] // bits
        each = each[..., : count * bits].reshape(*words.shape[:-1], count, bits)
        found = np.packbits(each, axis=-1, bitorder="little")[..., 0]
        return np.moveaxis(found, -1, axis)
    parts = 32 // bits
    found = np.empty((*words.shape, parts), np.uint8)
    for i in range(parts):
        found[..., i] = (words >> (bits * i)) & ((1 << bits) - 1)
    return np.moveaxis(found.reshape(*words.shape[:-1], -1), -1, axis)


def scaled(
    integers: Ints, scale: np.ndarray, zero: np.ndarray | float, groups: Ints | None
) -> np.ndarray:
    """(integers - zero) · scale, float32 [rows, columns].

    Args:
      integers: [rows, columns].
      scale: [rows or 1, groups]; columns have the scale of their group.
      zero: of the same shape, or one number.
      groups: the group of each column, [columns]; None if groups follow each other.
    """
    rows, columns = integers.shape
    result = integers.astype(np.float32)
    scale = np.asarray(scale, np.float32)
    if groups is not None:
        if not isinstance(zero, float):
            zero = np.asarray(zero, np.float32)[:, groups]
        result -= zero
        result *= scale[:, groups]
        return result
    count = scale.shape[1]
    each = result.reshape(rows, count, columns // count)
    each -= zero if isinstance(zero, float) else np.asarray(zero, np.float32)[..., None]
    each *= scale[..., None]
    return result
