"""Configurables made of values that were written by hand, checked by their types."""

import dataclasses
import inspect
import os
import typing
from collections.abc import Callable
from typing import Any

import typeguard

from fmjax.configurable import fields_of
from fmjax.errors import UserError


def constructor(cls: type) -> Callable[..., Any]:
    """A function of keywords, as gin wants it, that checks values before `cls` does.

    It raises a UserError for a value that is missing or of another type than its field.
    """
    fields = {field.name: field for field in fields_of(cls)}
    hints = typing.get_type_hints(cls)

    def construct(**values):
        for name, field in fields.items():
            default = (field.default, field.default_factory)
            if name not in values and default == (dataclasses.MISSING,) * 2:
                raise UserError(
                    f"{cls.gin_name}.{name} has no value; bind it in a config or "
                    "on the command line."
                )
        for name, value in values.items():
            value = _tuples(value)
            if fields[name].metadata.get("path"):
                value = _absolute(value)
            values[name] = value
            try:
                typeguard.check_type(value, hints[name])
                if isinstance(value, bool) and hints[name] in (int, float):
                    raise typeguard.TypeCheckError("is a boolean")
            except typeguard.TypeCheckError:
                # Of a tuple that macros made long, enough to know it by.
                raise UserError(
                    f"{cls.gin_name}.{name} = {value!r:.200}: expected "
                    f"{_format(hints[name])}, found {type(value).__name__}."
                ) from None
        return cls(**values)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in fields
    ]
    construct.__signature__ = inspect.Signature(parameters)
    construct.__name__ = cls.gin_name
    # Of no module: a whole name is found before others', such as gin.constant.
    construct.__module__ = None
    return construct


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


def _format(hint) -> str:
    text = getattr(hint, "__name__", None) if isinstance(hint, type) else None
    return text or str(hint).replace("typing.", "").replace("Literal", "one of ")
