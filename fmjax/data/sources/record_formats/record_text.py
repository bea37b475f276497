"""The text of a record: one field, or a template over fields."""

import string
from collections.abc import Sequence
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.data.sources.record_formats.parts import Field, describe
from fmjax.errors import UserError


class RecordText:
    """A field ("text", "meta.text"), or a template ("{title}: {body}").

    Attributes:
      fields: the fields that the text is made of, in order.
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
            self.fields, self._literals = (Field(text, ("strings",)),), ()
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
        kinds = ("strings", "integers")
        self.fields = tuple(Field(name, kinds) for name in names)
        self._literals = tuple(literal.encode() for literal in literals)

    def of(self, values: Sequence[Any]) -> bytes:
        """The text in UTF-8, of the values of `fields`.

        Raises:
          BadRecord: a value is null or of another type.
        """
        if not self.is_template:
            return self._encode(self.fields[0].name, values[0])
        parts = [self._literals[0]]
        for field, value, literal in zip(self.fields, values, self._literals[1:]):
            parts += [self._encode(field.name, value), literal]
        return b"".join(parts)

    def size(self, value: bytes) -> int:
        """Bytes of a text, 0 if it is blank."""
        return len(value) if value.strip() else 0

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
