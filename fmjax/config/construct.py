"""Building a configurable from values that were written by hand."""

import os
from typing import Any

from fmjax.configurable import fields_of, unbound_values
from fmjax.errors import UserError
from fmjax.field_types import is_required


def construct(cls: type, values: dict[str, Any]) -> Any:
    """Builds a configurable of class `cls` from the values of its fields.

    Lists become tuples and relative paths absolute.

    Raises:
      UserError: a value is missing, or what `cls` itself refuses, such as a value of
        another type than its field.
    """
    fields = {field.name: field for field in fields_of(cls)}
    for name, field in fields.items():
        if name in values or not is_required(field):
            continue
        if name not in unbound_values(cls):
            raise UserError(
                f"{cls.gin_name}.{name} has no value; bind it in a config or "
                "on the command line."
            )
        values = values | {name: unbound_values(cls)[name]}
    read = {}
    for name, value in values.items():
        value = _tuples(value)
        metadata = fields[name].metadata
        if metadata.get("path") and value not in metadata["names"]:
            value = _absolute(value)
        read[name] = value
    return cls(**read)


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
