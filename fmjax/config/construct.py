"""Building a configurable from values of a config, with a check of their types."""

import dataclasses
import functools
import os
import typing
from typing import Any

import typeguard

from fmjax.configurable import fields_of
from fmjax.errors import UserError


def construct(cls: type, values: dict[str, Any]) -> Any:
    """Builds a configurable of class `cls` from the values of its fields.

    Lists become tuples and relative paths absolute.

    Raises:
      UserError: a required value is missing or a value has the wrong type; or `cls`
        refuses a value.
    """
    fields = {field.name: field for field in fields_of(cls)}
    hints = _hints(cls)
    for name, field in fields.items():
        if name not in values and is_required(field):
            raise UserError(
                f"{cls.gin_name}.{name} has no value; bind it in a config or "
                "on the command line."
            )
    checked = {}
    for name, value in values.items():
        value = _tuples(value)
        if fields[name].metadata.get("path"):
            value = _absolute(value)
        try:
            typeguard.check_type(value, hints[name])
            if isinstance(value, bool) and _is_number(hints[name]):
                raise typeguard.TypeCheckError("is a boolean")
        except typeguard.TypeCheckError:
            raise UserError(
                f"{cls.gin_name}.{name} = {_format_value(value)}: expected "
                f"{format_type(hints[name])}{_found(value)}."
            ) from None
        checked[name] = value
    return cls(**checked)


def is_required(field: dataclasses.Field) -> bool:
    """Whether a field has no default."""
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def format_type(hint: Any) -> str:
    """A field's type as text, for errors and the reference."""
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
    if parts:
        names = ["None" if p is type(None) else format_type(p) for p in parts]
        return " or ".join(names)
    return str(hint).replace("typing.", "")


def _names(cls: type) -> list[str]:
    """The gin name of a class, or those of its subclasses if it has none itself."""
    if name := getattr(cls, "gin_name", None):
        return [name]
    if cls.__module__.startswith(("flax.", "builtins")):
        return []
    return sorted({name for sub in cls.__subclasses__() for name in _names(sub)})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_number(hint: Any) -> bool:
    """Whether a type accepts numbers but not booleans, which are integers in Python."""
    parts = typing.get_args(hint) or (hint,)
    return bool({int, float} & {*parts}) and bool not in parts


def _format_value(value: Any) -> str:
    name = getattr(type(value), "gin_name", None)
    # Macros can make a tuple very long.
    return f"@{name}()" if name else f"{value!r:.200}"


def _found(value: Any) -> str:
    # `_format_value` prints a configurable as its name, which is its type.
    return "" if hasattr(type(value), "gin_name") else f", found {type(value).__name__}"


def _tuples(value):
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(v) for v in value)
    return value


def _absolute(value):
    if isinstance(value, tuple):
        return tuple(_absolute(v) for v in value)
    if not isinstance(value, str) or "://" in value:
        return value
    return os.path.abspath(os.path.expanduser(value))
