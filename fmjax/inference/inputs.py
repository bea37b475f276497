"""Checking the arrays of a model's call: names, shapes and ranges."""

from collections.abc import Mapping

import numpy as np
from flax import linen as nn
from jaxtyping import ArrayLike

from fmjax.errors import UserError, suggest
from fmjax.models.call_arguments import array_names

# Earlier names of arguments → current names.
_EARLIER_NAMES = {"mask": "padding_mask", "encoder_mask": "encoder_padding_mask"}


def inputs_of(
    model: nn.Module, arrays: Mapping[str, ArrayLike]
) -> dict[str, np.ndarray]:
    """Converts arrays for a model's call: int32, bool for masks, float32 for images.

    Args:
      model: the model.
      arrays: maps arguments to arrays, [B, T] or for images [B, height, width, C].

    Raises:
      UserError: an argument is unknown or missing, a shape is wrong, an id is out of
        range, or there are no arrays.
    """
    needed = array_names(model)
    known = list(needed)
    for name in arrays:
        if name not in known:
            if _EARLIER_NAMES.get(name) in known:
                raise UserError(f"{name} is now called {_EARLIER_NAMES[name]}.")
            raise UserError(
                f"{name} is not an argument of @{model.gin_name}(); expected "
                f"{', '.join(known)}.{suggest(name, known)}"
            )
    for name in known:
        if needed[name] and arrays.get(name) is None:
            raise UserError(f"{name} is missing; @{model.gin_name}() needs it.")
    read = {
        name: _images(values)
        if name == "images"
        else _integers(name, values, _limit(model, name))
        for name, values in arrays.items()
        if values is not None
    }
    if not read:
        raise UserError(
            f"No arrays are given; @{model.gin_name}() expects {', '.join(known)}."
        )
    rows = next(iter(read.values())).shape[:1]
    apart = rows_apart(model)
    for name, array in read.items():
        if name == "images":
            if array.shape[:1] != rows and not apart:
                raise UserError(
                    f"images: {len(array)} images; expected {rows[0]}, as many as rows "
                    "of the other arrays."
                )
            continue
        # Encoder and decoder tokens may have different lengths.
        side = next(n for n in known if n in read and _side(n) == _side(name))
        of_side = read[side].shape
        expected = of_side if apart else (*rows, *of_side[1:])
        if array.ndim != 2 or array.shape != expected:
            same = "" if side == name else f", the same as {side}"
            raise UserError(f"{name}: shape {array.shape}; expected [B, T]{same}.")
    return {n: a.astype(bool) if _is_mask(n) else a for n, a in read.items()}


def rows_apart(model: nn.Module) -> bool:
    """Whether the numbers of images and texts may differ, as in CLIP."""
    return getattr(model, "rows_apart", False)


def _is_mask(name: str) -> bool:
    return name.endswith("mask") or name == "masked"


def _side(name: str) -> str:
    if name == "images":
        return name
    if name in ("visible", "masked"):
        return "patches"
    side, _, rest = name.partition("_")
    return side if rest and side in ("encoder", "decoder") else ""


def _limit(model: nn.Module, name: str) -> int:
    """The exclusive upper limit of an array's values."""
    if _is_mask(name):
        return 2
    if name == "visible":
        return model.grid[0] * model.grid[1]
    if name.endswith("segment_ids"):
        return 2**31
    if name.endswith("positions"):
        return model.max_length
    if name == "token_types":
        if not model.num_token_types:
            raise UserError(
                f"token_types is not an input, since {model.gin_name}.num_token_types "
                "= 0."
            )
        return model.num_token_types
    return model.vocab_size


def _integers(name: str, values: ArrayLike, limit: int) -> np.ndarray:
    """Values as int32; raises a UserError unless all are from 0 to limit - 1."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(
            f"{name}: rows have different lengths; expected an array [B, T]."
        ) from None
    if array.ndim and not array.size:
        raise UserError(
            f"{name}: shape {array.shape}; expected at least one token in each row."
        )
    if array.dtype.kind not in "iub":
        raise UserError(f"{name}: found {array.dtype}; expected integers.")
    if array.size and not 0 <= array.min() <= array.max() < limit:
        raise UserError(
            f"{name}: found {array.min()} to {array.max()}; expected 0 to {limit - 1}."
        )
    return array.astype(np.int32)


def _images(values: ArrayLike) -> np.ndarray:
    """Normalized images as float32 [B, height, width, C]."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(
            "images have different sizes; expected one array [B, height, width, C]."
        ) from None
    if array.ndim != 4:
        raise UserError(f"images: shape {array.shape}; expected [B, height, width, C].")
    if array.dtype.kind != "f":
        raise UserError(
            f"images: found {array.dtype}; expected normalized floats, from "
            "`run.preprocess`."
        )
    return array.astype(np.float32)
