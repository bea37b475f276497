"""The text of a record: one field, or a template over fields."""

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.errors import UserError, suggest

# Maximum number of field names that a message lists.
_LISTED = 20


class MissingField(BadRecord):
    """A record or a file without a field that the text needs.

    Attributes:
      field: name of the field.
      known: names of the fields that there are.
    """

    def __init__(self, field: str, known: Iterable[str]):
        self.field, self.known = field, tuple(known)
        listed = ", ".join(map(repr, self.known[:_LISTED])) or "none"
        more = ", …" if len(self.known) > _LISTED else ""
        hint = suggest(field, self.known)
        has = f"; it has {listed}{more}"
        super().__init__(f"has no field {field!r}{has}{hint and '.' + hint}")


class RecordText:
    """A field ("text", "meta.text"), or a template ("{title}: {body}").

    Attributes:
      fields: names of the fields that the text is made of, in order.
      is_template: whether it is a template; its fields may also be integers.
    """

    def __init__(self, text: str, binding: str):
        """Parses a field or a template.

        Args:
          text: the field or template.
          binding: gin name of the field that holds it, for error messages.

        Raises:
          UserError: a template without fields, or with more than names in braces.
        """
        self.is_template = "{" in text or "}" in text
        if not self.is_template:
            if not text:
                raise UserError(f"{binding} = '': expected the name of a field.")
            self.fields, self._literals = (text,), ()
            return
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(
                f"{binding} = {text!r}: {error}; expected fields in braces, such as "
                "'{title}: {body}', and {{ or }} for braces."
            ) from None
        names, literals = [], [""]
        for literal, name, form, conversion in parts:
            literals[-1] += literal
            if name is None:
                continue
            if not name or form or conversion:
                raise UserError(
                    f"{binding} = {text!r}: expected the name of a field in each pair "
                    "of braces, without ':' or '!', such as '{title}'."
                )
            names.append(name)
            literals.append("")
        if not names:
            raise UserError(f"{binding} = {text!r}: expected a field, as in '{{text}}'")
        self.fields = tuple(names)
        self._literals = tuple(literal.encode() for literal in literals)

    def of(self, values: Sequence[Any]) -> bytes:
        """The text in UTF-8, of the values of `fields`.

        Raises:
          BadRecord: a value is null or of another type.
        """
        if not self.is_template:
            return self._encode(self.fields[0], values[0])
        parts = [self._literals[0]]
        for field, value, literal in zip(self.fields, values, self._literals[1:]):
            parts += [self._encode(field, value), literal]
        return b"".join(parts)

    def _encode(self, field: str, value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            try:
                # CSV files keep bytes that are not UTF-8 in this way.
                return value.encode(errors="surrogateescape")
            except UnicodeEncodeError:
                raise BadRecord(
                    f"has half of a surrogate pair in {field!r}; expected Unicode"
                ) from None
        if self.is_template and type(value) is int:
            return b"%d" % value
        raise BadRecord(
            f"has {describe(value)} as {field!r}; expected a string"
            + (" or an integer" if self.is_template else "")
        )


def pick(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field; "a.b" is the field "a.b", or the field "b" of "a".

    Raises:
      MissingField: the record does not have it.
    """
    try:
        return record[field]
    except KeyError:
        pass
    try:
        return _walk(record, field)
    except KeyError:
        raise MissingField(field, _names(record)) from None


def describe(value: Any) -> str:
    """A value of JSON as messages name it, such as "the number 3"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    kind = "string" if isinstance(value, str) else "number"
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


def _names(record: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in record.items():
        yield prefix + name
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from _names(value, f"{prefix}{name}.")
