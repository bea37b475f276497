"""What a class needs in order to be named in a gin file; gin itself is not needed.

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
    """A field that may change when a run resumes, since it changes no result."""
    return dataclasses.field(default=default, metadata={"runtime": True})


def path(default: Any = dataclasses.MISSING, runtime: bool = True) -> Any:
    """A file, folder or glob (or a tuple of them): made absolute in a stored config.

    Where a file lies does not change what a run means, so paths are runtime fields;
    but not where nothing else tells what is read.
    """
    return dataclasses.field(
        default=default, metadata={"runtime": runtime, "path": True}
    )


def fields_of(cls: type) -> list[dataclasses.Field]:
    """The fields of a configurable class that gin may bind."""
    # Linen adds `parent` and `name` to every module.
    hidden = {"parent", "name"} if hasattr(cls, "apply") else set()
    return [f for f in dataclasses.fields(cls) if f.init and f.name not in hidden]
