"""AWQ (Lin et al. 2023), as AutoAWQ's "gemm" kernels have it: [inputs, outputs].

Eight integers of four bits of a row are in a word, from the lowest bits in the order 0,
2, 4, 6, 1, 3, 5, 7.
"""

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.quantized.packed_integers import scaled, unpack
from fmjax.interop.quantized.parts import Parts, Settings, modules

_BITS, _ORDER = 4, (0, 2, 4, 6, 1, 3, 5, 7)


def read(
    tensors: dict[str, StoredTensor], settings: Settings
) -> dict[str, StoredTensor]:
    """Takes quantized weights out of `tensors` and returns them dequantized."""
    bits = settings.get("bits", settings.get("w_bit", _BITS))
    version = str(settings.get("version", "gemm")).lower()
    if bits != _BITS or version != "gemm":
        raise UserError(
            f"quantization_config: {bits!r} bits and version = {version!r:.50} of AWQ "
            "are not supported; expected 4 bits and 'gemm'."
        )
    return {
        f"{parts.module}weight": _weight(parts)
        for parts in modules(tensors, "qweight", ("qzeros", "scales", "bias_scale"))
    }


def _weight(parts: Parts) -> StoredTensor:
    packed, zeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    many = 32 // _BITS
    ints = all(t.dtype == np.int32 and len(t.shape) == 2 for t in (packed, zeros))
    parts.expect(
        ints
        and len(scales.shape) == 2
        and scales.shape[0] > 0
        and packed.shape[0] % scales.shape[0] == 0
        and packed.shape[1] * many == scales.shape[1]
        and zeros.shape == (scales.shape[0], packed.shape[1]),
        "qweight [in, out / 8], qzeros [groups, out / 8] and scales [groups, out]",
    )

    def dequantize() -> np.ndarray:
        integers = _ordered(packed.read()).T
        zero = _ordered(zeros.read()).T
        return scaled(integers, scales.read().T, zero, None)

    shape = (scales.shape[1], packed.shape[0])
    return StoredTensor(shape, np.dtype(np.float32), dequantize, dequantized=True)


def _ordered(words: np.ndarray) -> np.ndarray:
    """The integers of each row in the order of the outputs, uint8."""
    places = unpack(words, _BITS, 1).reshape(*words.shape, len(_ORDER))
    found = np.empty_like(places)
    found[..., list(_ORDER)] = places
    return found.reshape(words.shape[0], -1)
