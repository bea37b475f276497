"""MXFP4 of the experts of gpt-oss: blocks of 32 numbers of four bits with one exponent.

OCP Microscaling Formats (2023).
"""

import numpy as np

from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.quantized import float4
from fmjax.interop.quantized.parts import Parts, Settings, modules


def read(
    tensors: dict[str, StoredTensor], settings: Settings
) -> dict[str, StoredTensor]:
    """Takes quantized weights out of `tensors` and returns them dequantized."""
    del settings
    return {p.module: _weight(p) for p in modules(tensors, "_blocks", ("_scales",))}


def _weight(parts: Parts) -> StoredTensor:
    blocks, scales = parts["_blocks"], parts["_scales"]
    parts.expect(
        blocks.dtype == scales.dtype == np.uint8
        and len(blocks.shape) == 4
        and blocks.shape[:3] == scales.shape
        and blocks.shape[3] == 16,
        "blocks [experts, out, in / 32, 16] and scales [experts, out, in / 32]",
    )
    experts, outputs, groups, _ = blocks.shape

    def dequantize() -> np.ndarray:
        found = float4.unpack(blocks.read())
        found *= float4.powers(scales.read())[..., None]
        # As the unquantized tensor is: [experts, in, out].
        return found.reshape(experts, outputs, -1).transpose(0, 2, 1)

    shape = (experts, groups * 32, outputs)
    return StoredTensor(shape, np.dtype(np.float32), dequantize, dequantized=True)
