"""Templates of the special tokens around one or two texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Slot(NamedTuple):
    """A part of a template: a special token or a text.

    Attributes:
      special: id of the special token; None for a text.
      text: number of the text, 0 or 1; None for a special token.
      token_type: token type of the part.
    """

    special: int | None
    text: int | None
    token_type: int


def parse(template: str, special_id: Callable[[str], int | None]) -> tuple[Slot, ...]:
    """Parses a template such as 'cls A sep B1 sep1'.

    Args:
      template: names of special tokens and the texts A and B; a digit is the token
        type, 0 by default.
      special_id: maps names to ids; special tokens without id are left out.
    """
    slots = []
    for part in template.split():
        token_type = int(part[-1]) if part[-1].isdigit() else 0
        name = part.rstrip("01")
        if name in ("A", "B"):
            slots.append(Slot(None, "AB".index(name), token_type))
        elif (special := special_id(name)) is not None:
            slots.append(Slot(special, None, token_type))
    return tuple(slots)


def of_encoding(encoding) -> tuple[Slot, ...]:
    """The template of an encoding made by the package `tokenizers`."""
    slots: list[Slot] = []
    for i, text, token_type in zip(
        encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True
    ):
        if text is None:
            slots.append(Slot(i, None, token_type))
        elif not slots or slots[-1].text != text:
            slots.append(Slot(None, text, token_type))
    return tuple(slots)


def text_start(template: Sequence[Slot]) -> int:
    """The number of special tokens before the first text."""
    return next(i for i, slot in enumerate(template) if slot.text is not None)


def fill(
    template: Sequence[Slot], texts: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Ids and token types of texts with the special tokens of a template."""
    ids: list[int] = []
    types: list[int] = []
    for slot in template:
        here = [slot.special] if slot.text is None else texts[slot.text]
        ids.extend(here)
        types.extend([slot.token_type] * len(here))
    return ids, types
