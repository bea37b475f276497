"""Parts of records: what a source takes from each record, and from which fields."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fmjax.data.records import BadRecord
from fmjax.errors import suggest

# Maximum number of field names that a message lists.
_LISTED = 20


class Field(NamedTuple):
    """A field of records.

    Attributes:
      name: its name; "a.b" is the field "a.b", or the field "b" of "a".
      kinds: what columns of Parquet and Arrow may hold: "strings", which includes
        bytes, "integers", "floats", "booleans", "lists", "objects".
      is_optional: whether a record without it has the value None.
    """

    name: str
    kinds: tuple[str, ...]
    is_optional: bool = False


# Stands for all of a record of JSON: its value is the object.
WHOLE = Field("\0record", ("objects",))


class Part(Protocol):
    """A value made of some fields of a record.

    Attributes:
      fields: the fields that it is made of.
    """

    fields: tuple[Field, ...]

    def of(self, values: Sequence[Any]) -> Any:
        """The value, from those of the fields.

        Raises:
          BadRecord: a value is null or of another type.
        """

    def size(self, value: Any) -> int | None:
        """Bytes of a value, 0 for a blank one; None if it does not count."""


class MissingField(BadRecord):
    """A record or a file without a field that is needed.

    Attributes:
      field: name of the field.
      known: names of the fields that there are.
    """

    def __init__(self, field: str, known: Iterable[str]):
        self.field, self.known = field, tuple(known)
        super().__init__(f"has no field {field!r}; {listed(self.known, field)}")


def listed(known: Sequence[str], wanted: str) -> str:
    """The fields that there are, for messages, and the one nearest to `wanted`."""
    names = ", ".join(map(repr, known[:_LISTED])) or "none"
    more = ", …" if len(known) > _LISTED else ""
    hint = suggest(wanted, known)
    return f"it has {names}{more}{hint and '.' + hint}"


def pick(record: Mapping[str, Any], field: Field) -> Any:
    """The value of a field.

    Raises:
      MissingField: the record does not have it, and it is not optional.
    """
    if field is WHOLE:
        return record
    try:
        return record[field.name]
    except KeyError:
        pass
    try:
        return _walk(record, field.name)
    except KeyError:
        if field.is_optional:
            return None
        raise MissingField(field.name, names_in(record)) from None


def names_in(record: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Yields the names of a record's fields, and "a.b" of those inside of others."""
    for name, value in record.items():
        yield prefix + name
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from names_in(value, f"{prefix}{name}.")


def describe(value: Any) -> str:
    """A value as messages name it, such as "the number 3"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    kind = "string" if isinstance(value, str | bytes) else "number"
    return f"the {kind} {value!r:.50}"


def _walk(record: Mapping[str, Any], field: str) -> Any:
    if field in record:
        return record[field]
    head, dot, rest = "", "", field
    while "." in rest:
        part, _, rest = rest.partition(".")
        head, dot = f"{head}{dot}{part}", "."
        if isinstance(record.get(head), dict):
            try:
                return _walk(record[head], rest)
            except KeyError:
                continue
    raise KeyError(field)
