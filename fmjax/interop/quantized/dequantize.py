"""Which weights of a model are quantized, and reading them dequantized."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmjax.errors import UserError, suggest
from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.quantized import (
    awq,
    bitsandbytes,
    compressed_tensors,
    float8,
    gptq,
    mxfp4,
)
from fmjax.interop.quantized.parts import Settings, without
from fmjax.interop.tensor_files import TensorFiles

Reader = Callable[[dict[str, StoredTensor], Settings], dict[str, StoredTensor]]
METHODS: dict[str, Reader] = {
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "compressed-tensors": compressed_tensors.read,
    "fbgemm_fp8": float8.read,
    "fp8": float8.read,
    "gptq": gptq.read,
    "mxfp4": mxfp4.read,
}
# Files of settings beside older configs that have none.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_ACTIVATIONS = tuple(compressed_tensors.leftovers())
_TOLD = ("bits", "w_bit", "group_size", "weight_block_size", "format")


def dequantized(
    folder: Path, files: TensorFiles, settings: dict[str, Any] | None
) -> tuple[TensorFiles, str | None]:
    """The tensors of files with quantized weights dequantized when they are read.

    Args:
      folder: may have a file of settings.
      files: the tensors.
      settings: quantization_config of config.json; None if it has none.

    Returns:
      The tensors, and what their form was, in words; None if none are quantized.

    Raises:
      UserError: the method is not supported, or the tensors of a weight do not fit.
    """
    method = str(settings.get("quant_method")) if settings else None
    if not settings:
        method, settings = _beside(folder)
        if settings is None:
            return files, None
    if method == "None" and {"load_in_4bit", "load_in_8bit"} & settings.keys():
        method = "bitsandbytes"
    if method not in METHODS:
        raise UserError(
            f"{folder}: quantization_config.quant_method = {method!r:.50} is not "
            f"supported; expected one of {', '.join(METHODS)}."
            f"{suggest(method, METHODS)}"
        )
    tensors = files.tensors
    try:
        found = METHODS[method](tensors, settings)
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: quantization_config is none of {method}: {error!r:.200}."
        ) from error
    if not found:
        # A config may say how to quantize what is not quantized.
        return files, None
    told = [f"{n} {settings[n]}" for n in _TOLD if settings.get(n) is not None]
    left = without(tensors, _ACTIVATIONS)
    count = f"{len(found)} of {len(found) + len(left)} tensors"
    return (
        TensorFiles(files.folder, left | found),
        f"{', '.join([method, *told])}; {count}",
    )


def _beside(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """The method and settings of a file beside config.json."""
    for name, method in _FILES.items():
        if (folder / name).is_file():
            try:
                settings = json.loads((folder / name).read_bytes())
            except (OSError, ValueError, RecursionError) as error:
                raise UserError(f"{folder / name} is not JSON: {error}.") from error
            if isinstance(settings, dict):
                return method, settings
    return None, None
