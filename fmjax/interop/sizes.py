"""Checking the sizes in a config.json against the tensors of the files.

A line of an untrusted file may ask for a thousand million layers. Each parameter has a
tensor in the files, so the tensors limit every size before anything is allocated.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmjax.configurable import fields_of
from fmjax.errors import UserError
from fmjax.interop import model_fields
from fmjax.interop.family import Family
from fmjax.interop.tensor_files import TensorFiles

# There is a tensor for each of these, and a row, column or number for each of those.
_TENSORS = ("num_layers", "experts.number")
_NUMBERS = (
    "channels",
    "disentangled.buckets",
    "embed_dim",
    "head_dim",
    "mlp_dim",
    "num_classes",
    "num_heads",
    "num_kv_heads",
    "patch_size",
    "relative_buckets.number",
    "token_classes",
    "vocab_size",
)
# Maximum size of a computed table of positions, which is not in the files: 4 MB.
_FEW = 1 << 20


def check_sizes(
    family: Family, values: Mapping[str, Any], files: TensorFiles, file: Path
) -> None:
    """Checks the sizes of a model before it is made.

    Args:
      family: the family of the model.
      values: its fields by dotted names.
      files: the tensors.
      file: the config.json, for messages.

    Raises:
      UserError: the files cannot hold so many parameters.
    """
    tensors, numbers = len(files.names), files.num_elements
    for name, last, value in _fields(values):
        most = tensors if last in _TENSORS else numbers
        least = 0 if last == "num_classes" else 1
        if value is None or last not in (*_TENSORS, *_NUMBERS, "image_size"):
            continue
        if last == "image_size":
            most = _longest_edge(name, values, numbers)
        if not least <= min(_edges(value)) <= max(_edges(value)) <= most:
            raise UserError(
                f"{file} makes {model_fields.describe(family.model, name)} {value}; "
                f"expected {least} to {most:,}, by the {tensors:,} tensors of "
                f"{numbers:,} numbers beside it."
            )


def _fields(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each field's dotted name, its last part, and its value.

    Of a configurable in a field, its own fields, by their gin names.
    """
    for name, value in values.items():
        if owner := getattr(type(value), "gin_name", None):
            for field in fields_of(type(value)):
                named = f"{owner}.{field.name}"
                yield named, named, getattr(value, field.name)
        else:
            yield name, name.rpartition(".")[2], value


def _longest_edge(name: str, values: Mapping[str, Any], numbers: int) -> int:
    """The longest edge of an image whose table of positions could be in the files."""
    patch = values.get(f"{name.removesuffix('image_size')}patch_size", 1)
    widths = [v for n, v in values.items() if n.rpartition(".")[2] == "embed_dim"]
    patches = max(numbers, _FEW) // max(1, *filter(None, widths))
    return int(patches**0.5) * max(_edges(patch))


def _edges(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
