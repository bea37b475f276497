"""Where a model expects special tokens around a text, or around two."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Slot(NamedTuple):
    """One special, or one of the texts.

    Attributes:
      special: the id; None for a text.
      text: which text, 0 or 1; None for a special.
      token_type: of what stands here.
    """

    special: int | None
    text: int | None
    token_type: int


def parse(template: str, special_id: Callable[[str], int | None]) -> tuple[Slot, ...]:
    """Parses names of specials and the texts A and B, as in 'cls A sep B1 sep1'.

    A digit is the token type, 0 by default. Names without an id are left out.
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
    """The template that the package `tokenizers` followed in an encoding."""
    slots: list[Slot] = []
    for i, text, token_type in zip(
        encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True
    ):
        if text is None:
            slots.append(Slot(i, None, token_type))
        elif not slots or slots[-1].text != text:
            slots.append(Slot(None, text, token_type))
    return tuple(slots)


def fill(
    template: Sequence[Slot], texts: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """The ids of texts with the specials around them, and their token types."""
    ids: list[int] = []
    types: list[int] = []
    for slot in template:
        here = [slot.special] if slot.text is None else texts[slot.text]
        ids.extend(here)
        types.extend([slot.token_type] * len(here))
    return ids, types
