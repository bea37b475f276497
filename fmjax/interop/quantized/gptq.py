"""GPTQ (Frantar et al. 2023), as AutoGPTQ and GPTQModel save it: [inputs, outputs].

Integers follow each other in a word along the inputs, those of zero points along the
outputs. Version 1 of the format has zero points less one. With `desc_act`, `g_idx` has
the group of each input.
"""

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.quantized.packed_integers import scaled, unpack
from fmjax.interop.quantized.parts import Parts, Settings, modules

_BITS = (2, 3, 4, 8)
_VERSION_1, _VERSION_2 = "gptq", "gptq_v2"


def read(
    tensors: dict[str, StoredTensor], settings: Settings
) -> dict[str, StoredTensor]:
    """Takes quantized weights out of `tensors` and returns them dequantized."""
    kind = settings.get("checkpoint_format") or _VERSION_1
    if kind not in (_VERSION_1, _VERSION_2):
        raise UserError(
            f"quantization_config: checkpoint_format = {kind!r:.50} of GPTQ is not "
            f"supported; expected {_VERSION_1!r} or {_VERSION_2!r}."
        )
    bits = settings.get("bits")
    return {
        f"{parts.module}weight": _weight(parts, bits, kind == _VERSION_1)
        for parts in modules(tensors, "qweight", ("qzeros", "scales", "g_idx"))
    }


def _weight(parts: Parts, bits: object, version_1: bool) -> StoredTensor:
    packed, zeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    order = parts.get("g_idx")
    matrices = all(len(t.shape) == 2 for t in (packed, zeros, scales))
    ints = packed.dtype == zeros.dtype == np.int32
    parts.expect(matrices and ints and 0 not in packed.shape, "int32 matrices")
    # Modules may have more bits than the config says of most.
    if order is not None and order.shape[0]:
        bits = 32 * packed.shape[0] / order.shape[0]
    if bits not in _BITS:
        expected = ", ".join(map(str, _BITS))
        raise UserError(f"{parts.module}: {bits!r:.50} bits; expected {expected}.")
    bits = int(bits)
    inputs, (groups, outputs) = packed.shape[0] * 32 // bits, scales.shape
    parts.expect(
        packed.shape[1] == outputs
        and zeros.shape == (groups, -(-outputs * bits // 32))
        and (order is not None or (groups > 0 and inputs % groups == 0))
        and (order is None or order.shape == (inputs,)),
        "qweight [in · bits / 32, out], qzeros [groups, out · bits / 32], scales "
        "[groups, out]",
    )

    def dequantize() -> np.ndarray:
        integers = unpack(packed.read(), bits, 0).T
        zero = unpack(zeros.read(), bits, 1)[:, :outputs].T
        if version_1:
            zero = (zero + 1) & ((1 << bits) - 1)
        each = None if order is None else order.read()
        if each is not None and (each.min() < 0 or each.max() >= groups):
            raise UserError(f"{parts.module}g_idx names a group that has no scale.")
        return scaled(integers, scales.read().T, zero, each)

    shape = (outputs, inputs)
    return StoredTensor(shape, np.dtype(np.float32), dequantize, dequantized=True)
