"""bitsandbytes: rows of int8 (Dettmers et al. 2022), NF4 and FP4 (QLoRA, 2023).

Numbers of four bits are in blocks of the flattened weight, of which each has a maximum;
the higher four bits of a byte come first. With nested quantization the maxima are codes
of eight bits in blocks of their own, and their mean is added.
"""

import json
import math
from typing import Any

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.quantized.parts import Parts, Settings, modules

_STATES = tuple(f"weight.quant_state.bitsandbytes__{k}" for k in ("nf4", "fp4"))
_ENDS = (
    *("weight", "weight.absmax", "weight.quant_map"),
    *("weight.nested_absmax", "weight.nested_quant_map"),
)


def read(
    tensors: dict[str, StoredTensor], settings: Settings
) -> dict[str, StoredTensor]:
    """Takes quantized weights out of `tensors` and returns them dequantized."""
    del settings
    found = {}
    for state in _STATES:
        for parts in modules(tensors, state, _ENDS):
            found[f"{parts.module}weight"] = _four_bits(parts, state)
    for parts in modules(tensors, "SCB", ("weight", "weight_format")):
        found[f"{parts.module}weight"] = _eight_bits(parts)
    return found


def _eight_bits(parts: Parts) -> StoredTensor:
    weight, scale = parts["weight"], parts["SCB"]
    parts.expect(
        weight.dtype == np.int8
        and len(weight.shape) == 2
        and scale.shape == weight.shape[:1],
        "int8 [out, in] and SCB [out]",
    )
    layout = parts.get("weight_format")
    parts.expect(
        layout is None or not np.any(layout.read()),
        "weight_format 0, rows; others are layouts of a GPU's memory",
    )

    def dequantize() -> np.ndarray:
        rows = scale.read().astype(np.float32)[:, None] / 127
        return weight.read().astype(np.float32) * rows

    dtype = np.dtype(np.float32)
    return StoredTensor(weight.shape, dtype, dequantize, dequantized=True)


def _four_bits(parts: Parts, state_end: str) -> StoredTensor:
    weight, maxima, table = (parts[end] for end in _ENDS[:3])
    state = _state(parts, state_end)
    shape, block = tuple(state["shape"]), state["blocksize"]
    size = math.prod(shape)
    parts.expect(
        weight.dtype.itemsize == 1
        and weight.size == -(-size // 2)
        and maxima.size == -(-size // block)
        and table.size == 16,
        f"bytes for {shape} and a maximum for each {block}",
    )
    nested = maxima.dtype == np.uint8

    def dequantize() -> np.ndarray:
        packed = weight.read().reshape(-1).view(np.uint8)
        codes = table.read().astype(np.float32).reshape(-1)
        values = np.empty(2 * packed.size, np.float32)
        values[0::2], values[1::2] = codes[packed >> 4], codes[packed & 15]
        most = _maxima(parts, state) if nested else maxima.read().reshape(-1)
        whole = size // block * block
        values[:whole].reshape(-1, block)[...] *= most[: size // block, None]
        values[whole:] *= most[-1]
        return values[:size].reshape(shape)

    return StoredTensor(shape, np.dtype(np.float32), dequantize, dequantized=True)


def _state(parts: Parts, end: str) -> dict[str, Any]:
    try:
        state = json.loads(parts.array(end).tobytes())
        numbers = [*state["shape"], state["blocksize"]]
        if all(type(n) is int and 0 < n < 1 << 40 for n in numbers):
            return state
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{parts.module}{end} is no JSON of a state.") from error
    raise UserError(f"{parts.module}{end} has no shape and blocksize.")


def _maxima(parts: Parts, state: dict[str, Any]) -> np.ndarray:
    """The maxima of blocks, dequantized themselves."""
    codes = parts.array("weight.nested_quant_map").astype(np.float32)
    outer = parts.array("weight.nested_absmax").astype(np.float32)
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    found = codes.reshape(-1)[parts.array("weight.absmax").reshape(-1)]
    fits = type(block) is int and block > 0 and isinstance(offset, float)
    parts.expect(fits and -(-found.size // block) == outer.size, "nested maxima")
    return found * np.repeat(outer.reshape(-1), block)[: found.size] + offset
