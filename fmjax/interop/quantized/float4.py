"""Numbers of four bits (E2M1) and of exponents alone (E8M0).

Both are of OCP Microscaling Formats (2023). Two numbers of four bits are in a byte, the
first in the lower bits.
"""

import numpy as np

_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_HALF, *(-x for x in _HALF)], np.float32)


def unpack(packed: np.ndarray) -> np.ndarray:
    """The numbers in bytes, float32 [..., 2 n].

    Args:
      packed: uint8 [..., n].
    """
    found = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.float32)
    found[..., 0::2] = _VALUES[packed & 15]
    found[..., 1::2] = _VALUES[packed >> 4]
    return found


def powers(exponents: np.ndarray) -> np.ndarray:
    """2 ** (exponent - 127), float32.

    Args:
      exponents: uint8 of any shape.
    """
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
