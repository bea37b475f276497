"""Configurables: classes that a gin file can name. This module does not import gin.

A configurable is a frozen dataclass or a linen module whose fields are literals
(numbers, strings, booleans, None, tuples of these) or other configurables. So every
experiment is a tree that can be printed as gin, compared field by field and read back.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fmjax.field_types import checked_init


def configurable(name: str):
    """Class decorator: gin files may bind `name.FIELD` and refer to `@name()`.

    Wherever an instance is made, in a config or in Python, a value of another type than
    its field is a UserError. The decorator stands above `@dataclass`.
    """

    def mark(cls):
        cls.gin_name = name
        if dataclasses.is_dataclass(cls):
            fields = frozenset(field.name for field in fields_of(cls))
            cls.__init__ = checked_init(cls, fields)
        return cls

    return mark


def runtime_field(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that affects no result, so it may change when a run resumes."""
    return dataclasses.field(default=default, metadata={"runtime": True})


def path(
    default: Any = dataclasses.MISSING,
    runtime: bool = True,
    names: tuple[str, ...] = (),
) -> Any:
    """A dataclass field for a file, folder or glob, or a tuple of them.

    Relative paths become absolute when the config is read.

    Args:
      default: the field's default; required if missing.
      names: values that are names of something built in, not paths.
      runtime: whether the path may change when a run resumes, as with `runtime_field`.
        Use False if the path alone identifies the data.
    """
    return dataclasses.field(
        default=default, metadata={"runtime": runtime, "path": True, "names": names}
    )


def fields_of(cls: type) -> list[dataclasses.Field]:
    """The fields of a configurable class that gin may bind."""
    # Linen adds `parent` and `name` to every module. flax takes a second to import.
    is_module = any(base.__module__.startswith("flax.linen") for base in cls.__mro__)
    hidden = {"parent", "name"} if is_module else set()
    return [f for f in dataclasses.fields(cls) if f.init and f.name not in hidden]


def unbound_values(cls: type) -> Mapping[str, Any]:
    """Values of fields that Python code must give, and configs need not bind.

    They are those of the class variable `unbound_values`, if the class has it.
    """
    return getattr(cls, "unbound_values", {})
