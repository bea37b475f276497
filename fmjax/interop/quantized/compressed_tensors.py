"""compressed-tensors, the format of llm-compressor: floats and integers of few bits.

Packed integers are [outputs, inputs], plus half their range, so that none is negative;
those of a row follow each other in a word. Zero points are packed along the outputs.
NVFP4 has a float8 scale for 16 numbers, divided by one of the whole weight; MXFP4 and
MXFP8 have exponents of two for 32.
"""

from collections.abc import Iterator

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.quantized import float4, float8
from fmjax.interop.quantized.packed_integers import scaled, unpack
from fmjax.interop.quantized.parts import Parts, Settings, modules

_FORMATS = (
    *("float-quantized", "int-quantized", "naive-quantized", "pack-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)
_ENDS = (
    *("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    "weight_global_scale",
)
_MOST_BITS = 8


def read(
    tensors: dict[str, StoredTensor], settings: Settings
) -> dict[str, StoredTensor]:
    """Takes quantized weights out of `tensors` and returns them dequantized."""
    groups = settings.get("config_groups")
    weights = [g.get("weights") for g in groups.values()] if groups else []
    weights = [each for each in weights if isinstance(each, dict)]
    kinds = [g.get("format") for g in groups.values()] if groups else []
    for kind in {settings.get("format"), *kinds} - {None, "mixed-precision", "dense"}:
        if kind not in _FORMATS:
            raise UserError(
                f"quantization_config: format = {kind!r:.50} of compressed-tensors is "
                f"not supported; expected {', '.join(_FORMATS)}."
            )
    bits = sorted({each.get("num_bits") for each in weights} & {*range(1, 9)})
    blocks = [each.get("block_structure") for each in weights]
    block = next((each for each in blocks if each), None)
    found = {
        f"{parts.module}weight": _float4(parts)
        if parts["weight_packed"].dtype == np.uint8
        else _packed(parts, bits)
        for parts in modules(tensors, "weight_packed", _ENDS)
    }
    for parts in modules(tensors, "weight_scale", ("weight", *_ENDS[1:])):
        if parts["weight"].dtype == np.int8:
            found[f"{parts.module}weight"] = _int8(parts)
        else:
            found[f"{parts.module}weight"] = _float8(parts, block)
    return found


def _float8(parts: Parts, block: object) -> StoredTensor:
    again = {
        f"{parts.module}{end}": parts[end]
        for end in ("weight", "weight_scale", "weight_zero_point")
        if parts.get(end) is not None
    }
    again[f"{parts.module}weight_scale"] = _numbers(parts["weight_scale"])
    (weight,) = float8.read(again, {"weight_block_size": block}).values()
    return weight


def _numbers(scale: StoredTensor) -> StoredTensor:
    """The scales of which a file may have the exponents alone."""
    if scale.dtype != np.uint8:
        return scale
    return StoredTensor(
        scale.shape, np.dtype(np.float32), lambda: float4.powers(scale.read())
    )


def _float4(parts: Parts) -> StoredTensor:
    packed, scale = parts["weight_packed"], _numbers(parts["weight_scale"])
    whole = parts.get("weight_global_scale")
    rows, half = packed.shape if len(packed.shape) == 2 else (0, 0)
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    parts.expect(
        rows > 0 and scale.shape == (rows, groups) and half > 0 and groups > 0,
        "weight_packed [out, in / 2] and weight_scale [out, groups]",
    )
    parts.expect(2 * half % groups == 0, "groups of equal numbers of inputs")
    parts.expect(
        parts.get("weight_zero_point") is None
        and (whole is None or int(np.prod(whole.shape)) == 1),
        "no zero points, and one weight_global_scale or none",
    )

    def dequantize() -> np.ndarray:
        scales = scale.read().astype(np.float32)
        if whole is not None:
            scales = scales / whole.read().astype(np.float32).reshape(())
        return scaled(float4.unpack(packed.read()), scales, 0.0, None)

    dtype = np.dtype(np.float32)
    return StoredTensor((rows, 2 * half), dtype, dequantize, dequantized=True)


def _int8(parts: Parts) -> StoredTensor:
    weight, scale = parts["weight"], parts["weight_scale"]
    scales = _scale_shape(parts, weight.shape)
    zero = parts.get("weight_zero_point")

    def dequantize() -> np.ndarray:
        shift = 0.0 if zero is None else zero.read().reshape(scales)
        return scaled(weight.read(), scale.read().reshape(scales), shift, None)

    dtype = np.dtype(np.float32)
    return StoredTensor(weight.shape, dtype, dequantize, dequantized=True)


def _packed(parts: Parts, known: list[int]) -> StoredTensor:
    packed, scale = parts["weight_packed"], parts["weight_scale"]
    shape = tuple(int(n) for n in parts.array("weight_shape").reshape(-1))
    fitting = [
        bits
        for bits in known
        if len(shape) == len(packed.shape) == 2
        and packed.shape == (shape[0], -(-shape[1] * bits // 32))
    ]
    parts.expect(
        len(fitting) == 1 and packed.dtype == np.int32 and min(shape) > 0,
        f"weight_packed [out, in · bits / 32] of one of {known} bits",
    )
    bits = fitting[0]
    scales = _scale_shape(parts, shape)
    zero, order = parts.get("weight_zero_point"), parts.get("weight_g_idx")
    half = 1 << (bits - 1)
    if zero is not None:
        words = (-(-scales[0] * bits // 32), scales[1])
        parts.expect(zero.shape in (words, scales), "zero points for each scale")

    def dequantize() -> np.ndarray:
        integers = unpack(packed.read(), bits, 1)[:, : shape[1]]
        shift: np.ndarray | float = float(half)
        if zero is not None:
            shift = zero.read()
            if zero.dtype == np.int32 and zero.shape != scales:
                shift = unpack(shift, bits, 0)[: scales[0]]
            else:
                shift = shift.astype(np.float32) + half
        groups = _groups(parts, order, scales[1])
        return scaled(integers, scale.read().reshape(scales), shift, groups)

    return StoredTensor(shape, np.dtype(np.float32), dequantize, dequantized=True)


def _groups(parts: Parts, order: StoredTensor | None, count: int) -> np.ndarray | None:
    """The group of each input, if they do not follow each other."""
    groups = None if order is None else order.read()
    if groups is None or not len(groups) or groups.min() < 0:
        return None
    parts.expect(groups.max() < count, "weight_g_idx of groups that have a scale")
    return groups


def _scale_shape(parts: Parts, shape: tuple[int, ...]) -> tuple[int, int]:
    """[rows or 1, groups] of the scales."""
    scale = parts["weight_scale"].shape
    if int(np.prod(scale)) == 1:
        return (1, 1)
    fits = len(shape) == 2 and scale[0] == shape[0] and len(scale) <= 2
    groups = scale[1] if len(scale) == 2 else 1
    parts.expect(
        fits and groups > 0 and shape[1] % groups == 0,
        "a scale for each row, group of a row, or for the whole",
    )
    return (shape[0], groups)


def leftovers() -> Iterator[str]:
    """Ends of tensors of activations and caches, which weights do not need."""
    for what in ("input", "output", "q", "k", "v"):
        yield from (f".{what}_scale", f".{what}_zero_point", f".{what}_global_scale")
