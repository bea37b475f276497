"""Arrays for a model's call, checked by name, shape and range before it is made."""

import inspect
from collections.abc import Mapping

import numpy as np
from flax import linen as nn
from jaxtyping import ArrayLike

from fmjax.errors import UserError, suggest
from fmjax.models.contracts import EncodesApart

# Arguments of a model's call that are no arrays.
_OTHERS = ("self", "keys", "hidden_states")
# What arguments were called in earlier versions.
_EARLIER_NAMES = {"mask": "padding_mask", "encoder_mask": "encoder_padding_mask"}


def inputs_of(
    model: nn.Module, arrays: Mapping[str, ArrayLike]
) -> dict[str, np.ndarray]:
    """What a model's call takes: integers as int32, masks as booleans, images float32.

    Raises:
      UserError: for a name that the model's call does not have or lacks, for arrays of
        other shapes than [B, T], or [B, height, width, C] of images, for ids that the
        model does not have, or for no arrays at all.
    """
    called = inspect.signature(type(model).__call__).parameters
    known = [name for name in called if name not in _OTHERS]
    for name in arrays:
        if name not in known:
            if _EARLIER_NAMES.get(name) in known:
                raise UserError(f"{name} is now called {_EARLIER_NAMES[name]}.")
            raise UserError(
                f"{name}: @{model.gin_name}() takes {', '.join(known)}."
                f"{suggest(name, known)}"
            )
    for name in known:
        required = called[name].default is inspect.Parameter.empty
        if required and arrays.get(name) is None:
            raise UserError(f"{name} is missing; @{model.gin_name}() reads it.")
    read = {
        name: _images(values)
        if name == "images"
        else _integers(name, values, _limit(model, name))
        for name, values in arrays.items()
        if values is not None
    }
    if not read:
        raise UserError(f"No arrays; @{model.gin_name}() takes {', '.join(known)}.")
    rows = next(iter(read.values())).shape[:1]
    apart = rows_apart(model)
    for name, array in read.items():
        if name == "images":
            if array.shape[:1] != rows and not apart:
                raise UserError(
                    f"images: {len(array)} of them; expected {rows[0]}, as of all that "
                    "goes with them."
                )
            continue
        # The two texts of an encoder-decoder have lengths of their own.
        side = next(n for n in known if n in read and _side(n) == _side(name))
        of_side = read[side].shape
        expected = of_side if apart else (*rows, *of_side[1:])
        if array.ndim != 2 or array.shape != expected:
            raise UserError(
                f"{name}: shape {array.shape}; expected [B, T], of {side} as of all "
                "that goes with it."
            )
    return {n: a.astype(bool) if _is_mask(n) else a for n, a in read.items()}


def rows_apart(model: nn.Module) -> bool:
    """Whether images and texts need not be as many: each is encoded by itself."""
    return isinstance(model, EncodesApart) and model.rows_apart


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
    """The number of values that an array may have."""
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
            raise UserError(f"token_types: {model.gin_name}.num_token_types = 0.")
        return model.num_token_types
    return model.vocab_size


def _integers(name: str, values: ArrayLike, limit: int) -> np.ndarray:
    """`values` as int32, each checked to be from 0 to limit - 1."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(
            f"{name}: rows of different lengths; expected [B, T]."
        ) from None
    if array.ndim and not array.size:
        raise UserError(f"{name}: shape {array.shape}; expected a token or more a row.")
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
        raise UserError("images: of different sizes; expected one array.") from None
    if array.ndim != 4:
        raise UserError(f"images: shape {array.shape}; expected [B, height, width, C].")
    if array.dtype.kind != "f":
        raise UserError(
            f"images: found {array.dtype}; expected normalized floats, as "
            "`run.preprocess` gives them."
        )
    return array.astype(np.float32)
