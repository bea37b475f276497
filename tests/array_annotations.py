"""The type checker that jaxtyping's import hook applies to fmjax in tests.

`addopts` in pyproject.toml names it. By beartype it checks dtypes and shapes of arrays;
other annotations are ty's, which reads them without running anything.
"""

import ast
import functools
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jaxtyping
import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray, _import_hook

# With the hook's own form arguments are bound twice, and checked twice, in each call.
_ONE_SIZE = "jaxtyping.jaxtyped(typechecker=None)"


def leave_others_alone() -> None:
    """Lets jaxtyping's hook decorate functions with annotated arrays alone.

    It decorates all functions, those inside of others anew in each call, and all
    classes, which took a third of the time of the tests.
    """

    class Transformer(_import_hook.JaxtypingTransformer):
        def visit_ClassDef(self, node):
            self.generic_visit(node)
            return node

        def visit_FunctionDef(self, node):
            if any(map(_is_array, _annotations(node))):
                # The checker of all that is annotated, and one name for one size.
                checker = self._typechecker.get_ast().keywords[0].value
                node.decorator_list += [ast.parse(_ONE_SIZE).body[0].value, checker]
                ast.fix_missing_locations(node)
            return node

    _import_hook.JaxtypingTransformer = Transformer


def _annotations(node: ast.FunctionDef):
    """All parts of the annotations of a function."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [each for each in (arguments.vararg, arguments.kwarg) if each]
    for hint in (*(each.annotation for each in every), node.returns):
        yield from ast.walk(hint) if hint else ()


def _is_array(node: ast.AST) -> bool:
    """Whether it is such as Float[Array, "B T"]."""
    name = node.value if isinstance(node, ast.Subscript) else None
    kind = getattr(jaxtyping, name.id, None) if isinstance(name, ast.Name) else None
    return kind is not None


def check_call(function):
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
