"""The type checker that jaxtyping's import hook applies to fmjax in tests.

`addopts` in pyproject.toml names it. By beartype it checks dtypes and shapes of arrays;
other annotations are ty's, which reads them without running anything.
"""

import functools
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray


def check_arrays(function):
    """`function`, whose calls raise where an array is not as it is annotated.

    Where a jax.Array is annotated, a NumPy array may be given, as to JAX's functions.
    Fields of dataclasses are not checked: JAX puts what it likes into those of pytrees.
    """
    if function.__name__ == "__init__":
        return function
    function.__annotations__ = {
        name: _widened(hint)
        for name, hint in function.__annotations__.items()
        if _has_array(hint)
    }
    return beartype(function)


def _has_array(hint: Any) -> bool:
    if typing.get_origin(hint) is Callable:
        return False  # what it takes and gives is known once it is called
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_array, typing.get_args(hint)))


def _widened(hint: Any) -> Any:
    """The annotation with NumPy arrays beside those of JAX.

    Of what stands beside an array, in a tuple or a union, only classes stay.
    """
    if not _has_array(hint):
        return _class(hint)
    args = typing.get_args(hint)
    if not args:
        if hint.array_type is jax.Array:
            return hint | hint.dtype[np.ndarray | np.generic, hint.dim_str]
        return hint
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return functools.reduce(operator.or_, map(_widened, args))
    kept = tuple(arg if arg is ... else _widened(arg) for arg in args)
    return typing.get_origin(hint)[kept]


def _class(hint: Any) -> Any:
    """A class that `isinstance` can tell, or Any; an int may be given for a float."""
    if hint is float:
        return float | int
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        return hint
    return None if hint is None else Any
