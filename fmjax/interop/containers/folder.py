"""The tensors of a folder's files of weights: safetensors, or those of PyTorch."""

import json
import re
from pathlib import Path

from fmjax.errors import UserError
from fmjax.interop.containers import safetensors_files, torch_files
from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.storage.git_lfs import refuse_pointer

# (file, index of shards, function that reads a file), the preferred one first.
_KINDS = (
    ("model.safetensors", "model.safetensors.index.json", safetensors_files.read_file),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", torch_files.read_file),
)
SUPPORTED = (
    "model.safetensors or pytorch_model.bin, or shards and their index "
    "(model.safetensors.index.json, pytorch_model.bin.index.json)"
)
# Files of other libraries' weights, which are named if they are all there is.
_OTHERS = re.compile(
    r".*\.(gguf|ggml|h5|msgpack|onnx|ot|pth|pt|ckpt|mlmodel|bin|safetensors|npz)"
)


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder by name.

    Raises:
      UserError: it has none of the supported files, or one cannot be read.
    """
    for single, index, read_file in _KINDS:
        if (folder / single).is_file():
            refuse_pointer(folder / single)
            return _some(folder / single, read_file(folder / single))
        if (folder / index).is_file():
            refuse_pointer(folder / index)
            return _some(folder / index, _read_shards(folder, index, read_file))
    others = sorted(x.name for x in folder.iterdir() if _OTHERS.fullmatch(x.name))
    found = f"found {', '.join(others[:5])}" if others else "found no weights"
    raise UserError(f"{folder}: {found}; expected {SUPPORTED}.")


def _some(file: Path, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    if not found:
        raise UserError(f"{file} holds no tensors; expected those of a model.")
    return found


def _read_shards(folder: Path, index: str, read_file) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    named = _weight_map(folder / index)
    suffix = Path(index).suffixes[0]
    for name in named.values():
        # Only plain names, so that an untrusted index cannot read other files.
        plain = isinstance(name, str) and not re.search(r"[/\\\0]|.{200}", name)
        if not plain or not name.endswith(suffix):
            raise UserError(
                f"{folder / index} names {name!r}; expected a {suffix} file of the "
                "folder."
            )
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, which {index} names.")
    for file in sorted(set(named.values())):
        refuse_pointer(folder / file)
        for name, tensor in read_file(folder / file).items():
            if name in found and named.get(name) != file:
                continue
            found[name] = tensor
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_bytes())["weight_map"].items())
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        raise UserError(f"{index} is damaged: {error!r}.") from error
