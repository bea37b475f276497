"""Safetensors files of a folder, read a tensor at a time into a model's parameters."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from safetensors import SafetensorError, safe_open

from fmjax.errors import UserError
from fmjax.models.gpt import GPT
from fmjax.sharding.rules import logical_axes

# NumPy knows bfloat16 by the package ml_dtypes, which jax imports.
_FLOATS = ("F64", "F32", "F16", "BF16")


class Source(NamedTuple):
    """Where a parameter comes from.

    Attributes:
      name: of the tensor in the files; {layer} stands for the index of a layer, over
        which the parameter is stacked.
      shape: of the tensor.
      convert: from the tensor, float32, to the parameter, but for padding.
    """

    name: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] = np.asarray


class Weights:
    """The tensors of a folder's safetensors files by name; nothing is read yet."""

    def __init__(self, folder: Path, prefix: str):
        """Opens the files.

        Args:
          folder: holds model.safetensors, or model.safetensors.index.json and shards.
          prefix: taken off names: a model saved without its head doesn't have it.
        """
        self._folder = folder
        self._opened = contextlib.ExitStack()
        self._found = {}
        for file in _files(folder):
            try:
                opened = self._opened.enter_context(safe_open(file, framework="np"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} cannot be read: {error}.") from error
            for name in opened.keys():  # noqa: SIM118
                self._found[name.removeprefix(prefix)] = (opened, name)

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._found)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as float32; a UserError if it has another shape or no floats."""
        file, name_in_file = self._found[name]
        info = file.get_slice(name_in_file)
        if tuple(info.get_shape()) != shape:
            raise UserError(
                f"{self._folder}: {name} has shape {tuple(info.get_shape())}; "
                f"config.json makes it {shape}."
            )
        if info.get_dtype() not in _FLOATS:
            raise UserError(
                f"{self._folder}: {name} is stored as {info.get_dtype()}; expected one "
                f"of {', '.join(_FLOATS)}."
            )
        return file.get_tensor(name_in_file).astype(np.float32)

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *error) -> None:
        self._opened.close()


def read_params(
    weights: Weights, model: GPT, sources: Mapping[str, Source], constants: str
) -> dict:
    """A model's parameters, float32 NumPy arrays, vocabulary padding zero.

    Args:
      weights: the files.
      model: what they are read into, its layers scanned.
      sources: by the parameter's path, as "stack/layers/attention/query".
      constants: pattern of names that hold no weights; old files have some.

    Raises:
      UserError: for a missing tensor, one that has no place, or one of another shape.
    """
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    num_layers = model.transformer.num_layers
    _check_names(weights, model, sources, constants)

    def fill(path, names, leaf) -> np.ndarray:
        source = sources[jax.tree_util.keystr(path, simple=True, separator="/")]
        filled = np.zeros(leaf.shape, np.float32)
        real = tuple(
            slice(model.vocab_size if name == "vocab" else None) for name in names
        )
        if "{layer}" not in source.name:
            filled[real] = source.convert(weights.read(source.name, source.shape))
            return filled
        for layer in range(num_layers):
            name = source.name.format(layer=layer)
            filled[layer] = source.convert(weights.read(name, source.shape))
        return filled

    return jax.tree_util.tree_map_with_path(
        fill,
        logical_axes(boxed),
        nn.unbox(boxed),
        is_leaf=lambda node: isinstance(node, tuple),
    )


def _check_names(
    weights: Weights, model: GPT, sources: Mapping[str, Source], constants: str
) -> None:
    expected = {
        source.name.format(layer=layer)
        for source in sources.values()
        for layer in range(model.transformer.num_layers)
    }
    found = {name for name in weights.names if not re.fullmatch(constants, name)}
    if model.tie_embeddings and "lm_head.weight" in found:
        table = sources["tokens/table"]
        head, tokens = (
            weights.read(name, table.shape) for name in ("lm_head.weight", table.name)
        )
        if not np.array_equal(head, tokens):
            raise UserError(
                f"{weights._folder}: tie_word_embeddings = True, but lm_head.weight "
                f"differs from {table.name}."
            )
        found.remove("lm_head.weight")
    for what, names in (
        ("has no", sorted(expected - found)),
        ("has tensors that this model has no place for:", sorted(found - expected)),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(f"{weights._folder} {what} {', '.join(names[:5])}{more}.")


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors files: one, or what an index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise UserError(
            f"{folder}: no model.safetensors. Only safetensors are read, never pickled "
            "files (.bin), which can run code; save_pretrained writes them."
        )
    try:
        named = json.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is damaged: {error!r}.") from error
    for name in named:
        # A plain name, so that a stranger's index cannot have other files read.
        plain = isinstance(name, str) and not re.search(r"[/\\\0]", name)
        if not plain or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names {name!r}; expected a .safetensors file of the folder."
            )
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, which {index.name} names.")
    return [folder / name for name in sorted(set(named))]
