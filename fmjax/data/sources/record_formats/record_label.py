"""The labels of a record: one, or several, or a number."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.data.sources.record_formats.parts import Field, describe

Labels = tuple[int | str, ...]


class RecordLabel:
    """A field with a label: an integer, a string or a boolean; or several of these.

    Attributes:
      fields: the field.
    """

    def __init__(self, field: str, several: bool, separator: str | None):
        """Only remembers.

        Args:
          field: name of the field.
          several: whether it holds several labels: a list, or a string.
          separator: what separates several labels in a string.
        """
        kinds = ("integers", "strings", "booleans")
        self.fields = (Field(field, (*kinds, "lists") if several else kinds),)
        self._several, self._separator = several, separator

    def of(self, values: Sequence[Any]) -> Labels:
        """The labels: integers, or strings without white space around them.

        A boolean is "false" or "true".

        Raises:
          BadRecord: there is none, or a value of another type.
        """
        (value,) = values
        if self._several and isinstance(value, list):
            return tuple(self._one(one) for one in value)
        label = self._one(value)
        if self._several and self._separator and isinstance(label, str):
            parts = map(str.strip, label.split(self._separator))
            return tuple(part for part in parts if part)
        return (label,)

    def size(self, value: Labels) -> None:
        """None: labels do not count."""

    def _one(self, value: Any) -> int | str:
        if isinstance(value, bool):
            return f"{value}".lower()
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int):
            return value
        if isinstance(value, bytes | str):
            text = value.decode(errors="replace") if isinstance(value, bytes) else value
            # Surrogates are bytes of CSV files that are not UTF-8.
            text = text.encode(errors="replace").decode().strip()
            if text or self._several:
                return text
        several = " or a list of these" if self._several else ""
        raise BadRecord(
            f"has {describe(value)} as {self.fields[0].name!r}; expected a label: an "
            f"integer, a string or a boolean{several}"
        )


class RecordNumber:
    """A field with a number, for regression: of a number's type, or a string.

    Attributes:
      fields: the field.
    """

    def __init__(self, field: str):
        """Only remembers the name of the field."""
        self.fields = (Field(field, ("integers", "floats", "strings")),)

    def of(self, values: Sequence[Any]) -> tuple[float]:
        """The number.

        Raises:
          BadRecord: there is none, or it is not finite.
        """
        (value,) = values
        number = math.nan
        if not isinstance(value, bool) and isinstance(value, int | float | str | bytes):
            with contextlib.suppress(ValueError, OverflowError):
                number = float(value)
        if math.isfinite(number):
            return (number,)
        raise BadRecord(
            f"has {describe(value)} as {self.fields[0].name!r}; expected a finite "
            "number"
        )

    def size(self, value: tuple[float]) -> None:
        """None: numbers do not count."""
