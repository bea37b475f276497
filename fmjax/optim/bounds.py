"""Bounds on the values of configurables, so that a user's mistake names its binding."""

from typing import Any

from fmjax.errors import UserError


def expect(configurable: Any, field: str, holds: bool, expected: str) -> None:
    """Raises a UserError that names `gin_name.field` and its value unless `holds`."""
    if not holds:
        value = getattr(configurable, field)
        raise UserError(
            f"{configurable.gin_name}.{field} = {value!r}: expected {expected}."
        )
