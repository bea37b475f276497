"""Configurables: classes that a gin file can name. This module does not import gin.

A configurable is a frozen dataclass or a linen module whose fields are literals
(numbers, strings, booleans, None, tuples of these) or other configurables. So every
experiment is a tree that can be printed as gin, compared field by field and read back.
"""

import dataclasses
from typing import Any


def configurable(name: str):
    """Class decorator: gin files may bind `name.FIELD` and refer to `@name()`."""

    def mark(cls):
        cls.gin_name = name
        return cls

    return mark


def runtime_field(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that affects no result, so it may change when a run resumes."""
    return dataclasses.field(default=default, metadata={"runtime": True})


def path(default: Any = dataclasses.MISSING, runtime: bool = True) -> Any:
    """A dataclass field for a file, folder or glob, or a tuple of them.

    Relative paths become absolute when the config is read.

    Args:
      default: the field's default; required if missing.
      runtime: whether the path may change when a run resumes, as with `runtime_field`.
        Use False if the path alone identifies the data.
    """
    return dataclasses.field(
        default=default, metadata={"runtime": runtime, "path": True}
    )


def fields_of(cls: type) -> list[dataclasses.Field]:
    """The fields of a configurable class that gin may bind."""
    # Linen adds `parent` and `name` to every module.
    hidden = {"parent", "name"} if hasattr(cls, "apply") else set()
    return [f for f in dataclasses.fields(cls) if f.init and f.name not in hidden]
