"""First-fit packing of texts into rows, with a bounded number of open rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

Text = TypeVar("Text")

# Maximum number of open rows; more gives less padding and takes longer.
_OPEN_ROWS = 256


def first_fit(
    texts: Iterable[Text], size: Callable[[Text], int], length: int
) -> Iterator[list[Text]]:
    """Yields the texts of each row.

    A text goes into the first open row that has room for it. A row is closed when it is
    full, or when it is the fullest of too many; the rest follow at the end.

    Args:
      texts: texts of at most `length` positions.
      size: the positions that a text takes.
      length: positions of a row.
    """
    rows: list[list[Text]] = []
    room = np.zeros(0, np.int64)
    for text in texts:
        needed = size(text)
        fits = np.flatnonzero(room >= needed)
        if fits.size:
            chosen = int(fits[0])
        else:
            if len(rows) == _OPEN_ROWS:
                fullest = int(room.argmin())
                yield rows.pop(fullest)
                room = np.delete(room, fullest)
            chosen = len(rows)
            rows.append([])
            room = np.append(room, length)
        rows[chosen].append(text)
        room[chosen] -= needed
        if room[chosen] == 0:
            yield rows.pop(chosen)
            room = np.delete(room, chosen)
    yield from rows
