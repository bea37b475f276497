"""The words of a record: a list of strings, or a string cut at white space."""

from collections.abc import Sequence
from typing import Any

from fmjax.data.records import BadRecord
from fmjax.data.sources.record_formats.parts import Field, describe


class RecordWords:
    """A field with the words of a text.

    Attributes:
      fields: the field.
    """

    def __init__(self, field: str):
        """Only remembers the name of the field."""
        self.fields = (Field(field, ("lists", "strings")),)

    def of(self, values: Sequence[Any]) -> tuple[bytes, ...]:
        """The words in UTF-8, none of them blank.

        Raises:
          BadRecord: it is neither a list of strings nor a string, or a word is blank.
        """
        (value,) = values
        if isinstance(value, str | bytes):
            return tuple(_encoded(value).split())
        name = self.fields[0].name
        if not isinstance(value, list):
            raise BadRecord(
                f"has {describe(value)} as {name!r}; expected a list of words, or a "
                "string"
            )
        for word in value:
            if not isinstance(word, str | bytes) or not word.strip():
                raise BadRecord(
                    f"has {describe(word)} among {name!r}; expected words that are not "
                    "blank"
                )
        return tuple(map(_encoded, value))

    def size(self, value: tuple[bytes, ...]) -> int:
        """Bytes of the words."""
        return sum(map(len, value))


def _encoded(text: str | bytes) -> bytes:
    # CSV files keep bytes that are not UTF-8 as surrogates.
    if isinstance(text, bytes):
        return text
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise BadRecord("has half of a surrogate pair; expected Unicode") from None
