"""Whether the values of a configurable's fields have the types that it declares."""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from fmjax.errors import UserError, suggest


def check_types(cls: type, values: Mapping[str, Any]) -> None:
    """Raises a UserError for a value of another type than its field.

    Args:
      cls: a configurable class.
      values: some of its fields.
    """
    # On first use, so that naming a class takes no time.
    import typeguard

    hints = _hints(cls)
    for name, value in values.items():
        try:
            typeguard.check_type(value, hints[name])
            if isinstance(value, bool) and _is_number(hints[name]):
                raise typeguard.TypeCheckError("is a boolean")
        except typeguard.TypeCheckError:
            # Of a tuple that macros made long, enough to know it by.
            raise UserError(
                f"{cls.gin_name}.{name} = {_format_value(value)}: expected "
                f"{format_type(hints[name])}{_found(value, hints[name])}"
            ) from None


def checked_init(cls: type, fields: frozenset[str]) -> Any:
    """The class's `__init__`, which then checks the values of these fields first."""
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            given = {}  # `init` says which argument is missing or not its own.
        check_types(cls, {n: x for n, x in given.items() if n in fields})
        init(self, *args, **kwargs)

    return checked


def gin_name(value: Any) -> str | None:
    """The name of a configurable class, or of an instance; None of anything else."""
    for cls in (value if isinstance(value, type) else type(value)).__mro__:
        if "gin_name" in vars(cls):
            return vars(cls)["gin_name"]
    return None


def format_type(hint: Any) -> str:
    """A field's type as errors and the reference print it."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return " or ".join(f"@{name}()" for name in _names(hint)) or hint.__name__
    if hint is typing.Any:
        return "a configurable"
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is tuple:
        inside = ["…" if p is Ellipsis else format_type(p) for p in parts]
        return f"({', '.join(inside)})"
    if origin is dict:
        return f"{{{': '.join(map(format_type, parts))}}}"
    if parts:
        names = ["None" if p is type(None) else format_type(p) for p in parts]
        return " or ".join(names)
    return str(hint).replace("typing.", "")


def is_required(field: dataclasses.Field) -> bool:
    """Whether a field has no default."""
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _names(cls: type) -> list[str]:
    """Gin names of a class of fmjax's or a user's, or of those that derive from it."""
    if name := gin_name(cls):
        return [name]
    if cls.__module__.startswith(("flax.", "builtins")):
        return []
    return sorted({name for sub in cls.__subclasses__() for name in _names(sub)})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_number(hint: Any) -> bool:
    """Whether a type takes numbers and no booleans, which Python counts as integers."""
    parts = typing.get_args(hint) or (hint,)
    return bool({int, float} & {*parts}) and bool not in parts


def _format_value(value: Any) -> str:
    name = gin_name(value)
    return f"@{name}()" if name else f"{value!r:.200}"


def _found(value: Any, hint: Any) -> str:
    choices = [text for text in _literals(hint) if isinstance(text, str)]
    if isinstance(value, str) and choices:
        return "." + suggest(value, choices)
    # Of a configurable, its name has told it.
    return "." if gin_name(value) else f", found {type(value).__name__}."


def _literals(hint: Any) -> list[Any]:
    """The values of a Literal, or of those in a union."""
    parts = [*typing.get_args(hint)]
    if typing.get_origin(hint) is typing.Literal:
        return parts
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [value for part in parts for value in _literals(part)] if is_union else []
