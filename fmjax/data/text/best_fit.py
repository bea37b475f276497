"""Best-fit-decreasing packing of texts into rows, in windows of bounded size."""

import bisect
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Text = TypeVar("Text")

# Positions of texts that are packed together, and the least number of rows.
_WINDOW, _LEAST_ROWS = 1 << 20, 256


def best_fit(
    texts: Iterable[Text], size: Callable[[Text], int], length: int
) -> Iterator[list[Text]]:
    """Yields the texts of each row.

    The longest texts come first; each goes into the row with the least room that is
    enough (Johnson et al. 1974: at most 11/9 of the optimal number of rows, plus 4).
    Rows, and the texts in them, are in the order of their first texts, so that a file's
    order is not replaced by one by length.

    Args:
      texts: texts of 1 to `length` positions.
      size: the positions that a text takes.
      length: positions of a row.
    """
    limit = max(_WINDOW, _LEAST_ROWS * length)
    window: list[Text] = []
    used = 0
    for text in texts:
        window.append(text)
        used += size(text)
        if used >= limit:
            yield from _packed(window, size, length)
            window, used = [], 0
    yield from _packed(window, size, length)


def _packed(
    texts: list[Text], size: Callable[[Text], int], length: int
) -> Iterator[list[Text]]:
    sizes = [size(text) for text in texts]
    rows: list[list[int]] = []
    # Rows by the room that is left, and the rooms that there are, in ascending order.
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for number in sorted(range(len(texts)), key=lambda n: (-sizes[n], n)):
        place = bisect.bisect_left(rooms, sizes[number])
        if place == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        rows[row].append(number)
        left = room - sizes[number]
        if left:
            if left not in by_room:
                by_room[left] = []
                bisect.insort(rooms, left)
            by_room[left].append(row)
    for row in sorted(map(sorted, rows)):
        yield [texts[number] for number in row]
